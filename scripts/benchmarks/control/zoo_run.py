"""Train with rl-zoo's settings, by Stable-Baselines3 or by our PPO: the peer's side of the control benchmark.

    python -m scripts.train_zoo --env Acrobot-v1 --library sb3 --run-dir runs/peer
    python -m scripts.train_zoo --env CartPole-v1 --library ours --run-dir runs/equal_work

Both are evaluated alike, by the same episodes in the same environments, and keep their best weights as
`scripts.train_control` does; `summary.json` has the same names.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch

from agents import PPO
from agents.control.best import BestKeeper
from agents.control.environments import make_vector
from agents.control.evaluation import evaluate
from agents.recipes.control import EVALUATION_SEED, FINAL_SEED
from agents.runs.cli import command
from agents.runs.logging import FileSink
from agents.runs.run_dir import RunDir
from scripts.benchmarks.control import zoo_settings as zoo


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train with rl-zoo's settings."""

    run_dir: Path
    """folder for config.json, progress.csv and summary.json"""
    env: str = "CartPole-v1"
    """one of the tasks rl-zoo's settings are known for here"""
    library: Literal["sb3", "ours"] = "sb3"
    """who trains"""
    seed: int = 0
    """of weights, actions and environments"""
    total_steps: int = 100_000
    """transitions to train for"""
    evaluate_every: int = 0
    """transitions between two greedy evaluations; 0: only at the end"""
    stop_at_return: float | None = None
    """end as soon as a greedy evaluation reaches this mean return"""
    eval_episodes: int = 100
    """episodes per evaluation, and in the final one"""
    threads: int = 1
    """CPU threads"""
    overwrite: bool = False
    """throw away the run in --run-dir"""

    def __post_init__(self) -> None:
        if self.env not in zoo.ZOO:
            raise ValueError(f"rl-zoo's settings are known for {sorted(zoo.ZOO)}, received {self.env!r}")


def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, write the run directory; the summary."""
    torch.set_num_threads(config.threads)
    preset = zoo.ZOO[config.env]
    agent: Any
    if config.library == "ours":
        agent = PPO(config.env, zoo.ours(preset, seed=config.seed))
    else:
        agent = Peer(zoo.theirs(config.env, preset, seed=config.seed))
    evaluation = make_vector(config.env, min(config.eval_episodes, 100))
    with RunDir(config.run_dir, script="train_zoo", overwrite=config.overwrite) as run:
        run.begin({**asdict(config), "zoo": asdict(preset)})
        agent.logger = sink = FileSink(run.path, ("csv",))
        keeper = BestKeeper(
            evaluation, every=config.evaluate_every or config.total_steps, episodes=config.eval_episodes,
            seed=EVALUATION_SEED, stop_at_return=config.stop_at_return,
        )  # fmt: skip
        began, began_cpu = time.perf_counter(), time.process_time()
        agent.learn(config.total_steps, keeper)
        wall_s = time.perf_counter() - began
        train_s = wall_s - keeper.seconds
        train_cpu_s = time.process_time() - began_cpu - keeper.cpu_seconds
        if not keeper.reached and agent.steps != keeper.last_steps:
            keeper.evaluate(agent)
        sink.close()
        keeper.restore_best(agent)
        returns, _ = evaluate(agent, evaluation, config.eval_episodes, seed=FINAL_SEED)
        summary = {
            "env": config.env, "library": config.library, "seed": config.seed, "steps": agent.steps,
            "wall_s": round(wall_s, 3), "train_s": round(train_s, 3), "train_cpu_s": round(train_cpu_s, 3),
            "steps_per_s": agent.steps / train_s,
            "eval_return_mean": float(returns.mean()), "eval_return_std": float(returns.std()),
            "best_return_mean": keeper.best_mean, "best_steps": keeper.best_steps,
        }  # fmt: skip
        if config.stop_at_return is not None:
            summary["reached"] = keeper.reached
        run.write_json("summary.json", summary)
    return summary


class Peer:
    """A Stable-Baselines3 model with the few names that ``BestKeeper`` and ``evaluate`` use."""

    def __init__(self, model: Any) -> None:
        from stable_baselines3.common.vec_env import VecNormalize

        self.model, self.policy = model, model.policy
        self.envs = model.get_env()
        self.collector = self
        self.logger: Any = None
        self.normalizer: Any = None
        if isinstance(self.envs, VecNormalize):  # its running statistics, to keep beside the best weights
            kept = vars(self.envs.obs_rms)
            save, load = (lambda: deepcopy(kept)), (lambda state: kept.update(deepcopy(state)))
            self.normalizer = SimpleNamespace(state_dict=save, load_state_dict=load)

    @property
    def steps(self) -> int:
        """Transitions so far."""
        return int(self.model.num_timesteps)

    def learn(self, total_steps: int, keeper: BestKeeper) -> None:
        """Train, asking ``keeper`` between two rollouts whether to go on."""
        from stable_baselines3.common.callbacks import BaseCallback

        peer: Any = self  # has of an agent what a keeper reads

        class Ask(BaseCallback):
            should_continue = True

            def _on_rollout_start(self) -> None:
                self.should_continue = peer.steps == 0 or keeper(peer)

            def _on_step(self) -> bool:
                return self.should_continue

        self.model.learn(total_steps, Ask())

    def predict(self, observations: Any, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Actions for raw observations, normalized as in training, statistics frozen."""
        seen = self.envs.normalize_obs(observations) if self.normalizer is not None else observations
        return self.model.predict(seen, deterministic=deterministic)


command_line = command(Config, main, __doc__)
