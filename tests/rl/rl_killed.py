"""Run as a process that is killed: `python rl_killed.py FOLDER ALGORITHM`. Prints each step; writes final.safetensors."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from rl_toys import CharTokenizer, EmitTask, output, rl_config, tiny_model
from safetensors.torch import save_file

from feebcore.rl.trainer import RlTrainer

STEPS = 12


def make(folder: Path, algorithm: str) -> RlTrainer:
    options = {"ppo": {"kl_coefficient": 0.05, "kl_target": 0.5, "kl_estimator": "k1", "kl_place": "reward"}, "grpo": {"kl_coefficient": 0.02}}
    section = rl_config(
        algorithm={"name": algorithm, "entropy_coefficient": 0.01, "epochs": 2, "minibatches": 2, **options[algorithm]},
        max_steps=STEPS,
        checkpoint_every=3,
        prompts_per_step=4,
        group_size=4,
        eval_prompts=8,
        validation_every=4,
    )
    tokenizer = CharTokenizer()
    return RlTrainer(section, tiny_model(tokenizer.vocab_size, dropout=0.1), tokenizer, EmitTask(4), folder, output(folder))


def main(folder: Path, algorithm: str) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    trainer = make(folder, algorithm)
    advance = trainer.advance
    trainer.advance = lambda: (advance(), print("step", trainer.step, flush=True))[0]  # type: ignore[method-assign]
    trainer.run()
    save_file({k: v.contiguous() for k, v in trainer.actor.state_dict().items()}, folder / "final.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
