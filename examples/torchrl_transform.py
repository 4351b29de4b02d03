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
    """Adds weight * tanh(h(s | min Q(s, a))) to the reward of a sampled batch, by the loss's critics of the moment."""

    def __init__(self, loss: SACLoss, weight: float = 0.1, k: int = 12) -> None:
        super().__init__()
        self.loss, self.weight, self.k = [loss], weight, k  # in a list: the loss is not a part of the transform

    @torch.no_grad()
    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        (loss,), values = self.loss, []
        for parameters in loss.qvalue_network_params.unbind(0):  # copies of the critic given, which itself never learns
            with parameters.to_module(loss.qvalue_network):
                values.append(loss.qvalue_network(batch.select("observation", "action"))["state_action_value"])
        bonus = qcse_bonus(batch["observation"], torch.cat(values, dim=-1).amin(-1), self.k).unsqueeze(-1)
        return batch.set("bonus", bonus).set(("next", "reward"), batch["next", "reward"] + self.weight * bonus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    torch.manual_seed(0)
    env = GymEnv("Pendulum-v1")
    size, spec = env.observation_spec["observation"].shape[-1], env.action_spec
    net = torch.nn.Sequential(MLP(size, 2 * spec.shape[-1], num_cells=[64, 64]), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, ["observation"], ["loc", "scale"]), ["loc", "scale"], spec=spec, return_log_prob=True,
        distribution_class=TanhNormal, distribution_kwargs={"low": spec.space.low, "high": spec.space.high},
    )  # fmt: skip
    q = ValueOperator(MLP(size + spec.shape[-1], 1, num_cells=[64, 64]), ["observation", "action"])
    loss, chunk = SACLoss(actor, q), 100
    targets, optimizer = SoftUpdate(loss, tau=0.005), torch.optim.Adam(loss.parameters(), 3e-4)
    buffer = ReplayBuffer(storage=LazyTensorStorage(100_000), transform=QConditionedBonus(loss), batch_size=128)
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
