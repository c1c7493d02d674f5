# Every target is one script under scripts/, which works without make too.
.PHONY: run test lint bench bench-peers lab chaos test-engines test-integrations help
.DEFAULT_GOAL := help

run:    ; @scripts/run    ## set up what is missing and start everything on this machine
test:   ; @scripts/test   ## the whole test suite (5 minutes at most on 2 cores)
lint:   ; @scripts/lint   ## style, types and the direction of imports
bench:  ; @scripts/bench  ## performance figures, self-contained
lab:    ; @scripts/lab    ## routing and fairness simulations
chaos:  ; @scripts/chaos  ## the fault matrix: real processes, really killed
test-integrations: ; @scripts/test-integrations  ## the Agents SDK, LangChain and pydantic-ai against AIRI on simulated models
test-engines: ; @scripts/test-engines  ## through AIRI against a real vLLM on the CPU (3.5 GB, installed once)
bench-peers: ; @scripts/bench-peers  ## AIRI beside LiteLLM, Portkey, sglang-router and vllm-router
help:   ; @scripts/help   ## this list
