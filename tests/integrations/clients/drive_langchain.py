"""LangChain's ChatOpenAI against AIRI, over chat completions and over responses."""

import asyncio
from collections.abc import Awaitable, Callable

import openai
from checks import BASE_URL, KEY, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, WRONG_KEY, city_of, refusal, run
from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

APIS = ("chat", "responses")


class Place(BaseModel):
    """A city."""

    city: str
    inhabitants: int


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return city_of(city)


def chat(api: str, *, key: str = KEY, name: str = MODEL) -> ChatOpenAI:
    return ChatOpenAI(
        model=name,
        base_url=BASE_URL,
        api_key=key,
        max_retries=0,
        stream_usage=True,
        use_responses_api=api == "responses",
    )


def plain(api: str) -> None:
    answer = chat(api).invoke([("system", "Be kind."), ("human", "Hello")])
    assert answer.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] > 0
    assert answer.response_metadata["model_name"] == MODEL


def streamed(api: str) -> None:
    chunks = list(chat(api).stream("Hello"))
    texts = [chunk.text for chunk in chunks if chunk.text]
    assert len(texts) > 1
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.text == "".join(texts)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


def tools(api: str) -> None:
    bound = chat(api).bind_tools([weather])
    asked = bound.invoke([HumanMessage(QUESTION)])
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert REPORT in bound.invoke([HumanMessage(QUESTION), asked, result]).text


def tools_streamed(api: str) -> None:
    chunks = list(chat(api).bind_tools([weather]).stream(QUESTION))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Oslo"})]


def agent(api: str) -> None:
    result = create_agent(chat(api), tools=[weather]).invoke({"messages": [HumanMessage(QUESTION)]})
    kinds = [message.type for message in result["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"], kinds
    assert REPORT in result["messages"][-1].text


def structured(api: str) -> None:
    for method in ("json_schema", "function_calling"):
        place = chat(api).with_structured_output(Place, method=method).invoke("Oslo has 700000 inhabitants")
        assert isinstance(place, Place), method
        assert place.city


async def streamed_async(api: str) -> None:
    texts = [chunk.text async for chunk in chat(api).astream("Hello")]
    assert sum(map(bool, texts)) > 1


def wrong_key(api: str) -> None:
    with refusal(openai.AuthenticationError) as caught:
        chat(api, key=WRONG_KEY).invoke("Hello")
    assert caught[0].code == "invalid_api_key"


def unknown_model(api: str) -> None:
    with refusal(openai.NotFoundError) as caught:
        chat(api, name=UNKNOWN_MODEL).invoke("Hello")
    assert caught[0].code == "model_not_found"


def embeddings() -> None:
    # Its own counting of tokens would download a file.
    embedder = OpenAIEmbeddings(
        model="sim/embed", base_url=BASE_URL, api_key=KEY, check_embedding_ctx_length=False, dimensions=64
    )
    near, like, far = embedder.embed_documents(["a red house", "a red house, old", "quarterly tax return"])
    assert len(near) == 64

    def likeness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert likeness(near, like) > likeness(near, far)


CHECKS = (plain, streamed, tools, tools_streamed, agent, structured, wrong_key, unknown_model)


def bound(check: Callable[[str], None], api: str) -> Callable[[], Awaitable[None]]:
    return lambda: asyncio.to_thread(check, api)


run(
    {
        **{f"{check.__name__}[{api}]": bound(check, api) for api in APIS for check in CHECKS},
        "streamed_async[chat]": lambda: streamed_async("chat"),
        "streamed_async[responses]": lambda: streamed_async("responses"),
        "embeddings": lambda: asyncio.to_thread(embeddings),
    }
)
