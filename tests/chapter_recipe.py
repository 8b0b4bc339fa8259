"""The chapter's own training script, as near to its lines as TRL 1.16 allows: what tests/benchmark.py compares step 3 with.

    python tests/chapter_recipe.py [BASE_MODEL PAIRS FOLDER STEPS]
    python tests/chapter_recipe.py output/base_model output/preference_data.json output/recipe -1

Needs output/base_model/ and output/preference_data.json (steps 0 and 1). The second line shows the defaults; -1 steps are the three epochs.
Beside the chapter's lines it has only what lets it start on a machine without a GPU. It reads the pairs as plain strings, without the chat
template, trains all weights with AdamW and keeps every checkpoint.
"""

import json
import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

defaults = ["output/base_model", "output/preference_data.json", "output/recipe", "-1"]
base_model, pairs, folder, steps = sys.argv[1:] or defaults

tokenizer = AutoTokenizer.from_pretrained(base_model)
model = AutoModelForCausalLM.from_pretrained(base_model)
args = DPOConfig(
    output_dir=folder,
    beta=0.1,
    learning_rate=1e-5,
    num_train_epochs=3,
    per_device_train_batch_size=2,
    logging_steps=5,
    save_steps=20,
    max_steps=int(steps),
    report_to="none",
    **({} if torch.cuda.is_available() else {"use_cpu": True, "bf16": False}),
)
with open(pairs, encoding="utf-8") as file:
    dataset = Dataset.from_list(json.load(file))
trainer = DPOTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
trainer.train()
trainer.save_model(f"{folder}/final_model")
