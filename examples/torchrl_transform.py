"""TorchRL: a transform of the replay buffer adds the bonus to what is sampled. python examples/torchrl_transform.py"""

import argparse

import torch
from bonus import qcse_bonus
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import GymEnv
from torchrl.envs.transforms import Transform
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate


class QConditionedBonus(Transform):
    """Adds weight * tanh(h(s | Q(s, a))) to the reward of a sampled batch, by the critics of the moment."""

    def __init__(self, q: TensorDictModule, weight: float = 0.1, k: int = 12) -> None:
        super().__init__()
        self.q, self.weight, self.k = [q], weight, k  # in a list: the critic is not a part of the transform

    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        with torch.no_grad():
            q = self.q[0](batch.select("observation", "action"))["state_action_value"].squeeze(-1)
        bonus = qcse_bonus(batch["observation"], q, self.k).unsqueeze(-1)
        return batch.set("bonus", bonus).set(("next", "reward"), batch["next", "reward"] + self.weight * bonus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    torch.manual_seed(0)
    env = GymEnv("Pendulum-v1")
    size, actions = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    heads = MLP(in_features=size, out_features=2 * actions, num_cells=[64, 64])
    net = torch.nn.Sequential(heads, NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]), spec=env.action_spec,
        in_keys=["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True,
        distribution_kwargs={"low": env.action_spec.space.low, "high": env.action_spec.space.high},
    )  # fmt: skip
    q = ValueOperator(MLP(in_features=size + actions, out_features=1, num_cells=[64, 64]), ["observation", "action"])
    loss, chunk = SACLoss(actor, q, num_qvalue_nets=1), 100
    loss.make_value_estimator(gamma=0.99)
    targets, optimizer = SoftUpdate(loss, tau=0.005), torch.optim.Adam(loss.parameters(), 3e-4)
    buffer = ReplayBuffer(storage=LazyTensorStorage(100_000), transform=QConditionedBonus(q), batch_size=128)
    for _ in range(0, parser.parse_args().steps, chunk):
        buffer.extend(env.rollout(chunk, actor, break_when_any_done=False).detach())
        for _ in range(chunk):
            batch = buffer.sample()
            optimizer.zero_grad()
            sum(value for name, value in loss(batch).items() if name.startswith("loss_")).backward()
            optimizer.step()
            targets.step()
    print(f"mean bonus of the last batch: {batch['bonus'].mean():.3f}")


if __name__ == "__main__":
    main()
