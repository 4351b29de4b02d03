// The operators around the networks that only GPUs have kernels for: schemas alone. (On a CPU their definitions in
// plain torch are as fast: a launch costs nothing there.)
#include "base/op.h"

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def(
      "gaussian_head(Tensor raw, Tensor multiplier, Tensor offset, float low, float high) "
      "-> (Tensor mean, Tensor log_std)");
  m.def(
      "gaussian_head_backward(Tensor mean_grad, Tensor log_std_grad, Tensor raw, Tensor multiplier, Tensor offset, "
      "float low, float high) -> (Tensor raw_grad, Tensor multiplier_grad, Tensor offset_grad)");
  m.def(
      "bellman_target(Tensor values, Tensor log_prob, Tensor rewards, Tensor bootstrap, Tensor temperature, "
      "float discount, bool entropy_backup) -> Tensor");
  m.def("actor_loss(Tensor q, Tensor log_prob, Tensor temperature, bool least) -> (Tensor loss, Tensor mean_log_prob)");
  m.def(
      "actor_loss_backward(Tensor loss_grad, Tensor q, Tensor temperature, bool least) "
      "-> (Tensor q_grad, Tensor log_prob_grad)");
  m.def(
      "adam_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] first_moments, Tensor(c!)[] second_moments, "
      "Tensor(d!)[] steps, Tensor(e!)[] targets, int[] followed, float[] rates, float beta1, float beta2, "
      "float epsilon, float target_rate, Tensor(f!) tickets) -> ()");
}
