"""A Llama small enough for any machine: random weights, made by the engine; a tokenizer trained on AIRI's own pages."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.live import ROOT

CONTEXT_TOKENS = 8_192
_SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
_VOCABULARY = 2_048
_TEMPLATE = (
    "{%- if tools %}<|system|>{{ tools | tojson }}{%- endif %}"
    "{%- for message in messages %}<|{{ message.role }}|>"
    "{{ message.content or '' }}{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{%- endif %}<|end|>{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{%- endif %}"
)


def write_model(folder: Path) -> Path:
    """Write configuration and tokenizer; no weights (``--load-format dummy`` invents them). Nothing is downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train()
    tokenizer.save(str(folder / "tokenizer.json"))
    end = _SPECIAL.index("<|end|>")  # special tokens come first
    _write(folder / "config.json", _config(tokenizer.get_vocab_size(), end))
    _write(folder / "generation_config.json", {"eos_token_id": end, "bos_token_id": end})
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": "<|end|>",
            "model_max_length": CONTEXT_TOKENS, "chat_template": _TEMPLATE, "clean_up_tokenization_spaces": False,
        },
    )  # fmt: skip
    return folder


def _train() -> Tokenizer:
    """Byte-level BPE, so that any text can be said."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    tokenizer.train_from_iterator((page.read_text() for page in pages), trainer)
    return tokenizer


def _config(vocabulary: int, end: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": end, "eos_token_id": end,
    }  # fmt: skip


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1))
