"""Tiny random models of the families that people train, each with a chat template of its own: as a rule that which the installed TRL ships."""

import re
from importlib.resources import files
from pathlib import Path

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL |= {"max_position_embeddings": 2048, "head_dim": 16, "tie_word_embeddings": True}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 16}

# SmolLM2's and Mistral's templates, which TRL does not ship, and what of SmolLM3's matters: thinking is switched by enable_thinking.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant "
    "named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM3 = (
    "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}"
    "{{ '<|im_start|>system\nReasoning Mode: ' + ('/think' if enable_thinking else '/no_think') + '<|im_end|>\n' }}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and not enable_thinking -%}{{ '<think>\n\n</think>\n' }}{%- endif -%}"
    "{{ message.content.lstrip('\n') + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n') }}{%- endif -%}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

# name: (config class, what of its settings is not SMALL, the name or the text of its chat template, the token that ends a turn)
FAMILIES = {
    "qwen2": ("Qwen2Config", {}, "qwen2_5", "<|im_end|>"),
    "qwen3": ("Qwen3Config", {}, "qwen3", "<|im_end|>"),
    "qwen3.5": (
        "Qwen3_5TextConfig",
        {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
         "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        "qwen3_5_think", "<|im_end|>",
    ),
    "llama3": ("LlamaConfig", {}, "llama3_2", "<|eot_id|>"),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}, "gemma3", "<end_of_turn>"),
    "smollm2": ("LlamaConfig", {}, SMOLLM2, "<|im_end|>"),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0], "use_sliding_window": False}, SMOLLM3, "<|im_end|>"),
    "phi3": ("Phi3Config", {"sliding_window": 2047}, "phi3", "<|end|>"),
    "mistral": ("MistralConfig", {"sliding_window": 32}, MISTRAL, "</s>"),
    "cohere2": ("Cohere2Config", {"sliding_window": 32, "logit_scale": 0.25, "layer_types": ["sliding_attention", "full_attention"]}, "cohere2", "<|END_OF_TURN_TOKEN|>"),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}, "lfm2", "<|im_end|>"),
    "falcon-h1": ("FalconH1Config", {**MAMBA, "mamba_d_ssm": 64}, "qwen2_5", "<|im_end|>"),
    "granite-h": (
        "GraniteMoeHybridConfig",
        {**MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 32},
        "qwen2_5", "<|im_end|>",
    ),
    "granite-moe": ("GraniteMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 2.0}, "qwen2_5", "<|im_end|>"),
    "qwen3-moe": ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}, "qwen3", "<|im_end|>"),
}  # fmt: skip


def shipped_template(name: str) -> str:
    """Return a chat template that the installed TRL ships."""
    return (files("trl") / f"chat_templates/{name}.jinja").read_text(encoding="utf-8")


def make_tokenizer(template: str, end: str):
    """Return a byte-level tokenizer in which every special token of a chat template is one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = re.findall(r"<\|[A-Za-z_]+\|>|</?[a-z_]*of_turn>|\[/?INST\]", template)
    special = list(dict.fromkeys(["<pad>", "<s>", "</s>", end, *special]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=end, pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


def make_model(family: str, folder: Path, **changed) -> Path:
    """Save a tiny random model of a family into a folder, with some of its settings changed, and return the folder."""
    import torch
    import transformers

    name, settings, template, end = FAMILIES[family]
    tokenizer = make_tokenizer(template if " " in template else shipped_template(template), end)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SMALL | {"vocab_size": len(tokenizer), **ids} | settings | changed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
