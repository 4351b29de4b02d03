// What lies between the products of fully connected networks as operators (pointwise.h): schemas alone. They are for
// devices whose products are a library's; the CPU's kernels fuse more than that (op_mlp.cpp, op_critic.cpp).
#include "base/op.h"

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def("bias_relu_(Tensor(a!) x, Tensor bias) -> ()");
  m.def("action_relu(Tensor actions, Tensor weight, Tensor state, Tensor bias) -> Tensor");
  m.def("relu_dot(Tensor x, Tensor? bias, Tensor weight, Tensor last_bias) -> Tensor");
  m.def("relu_backward_(Tensor(a!) grad, Tensor h) -> Tensor");
  m.def(
      "action_relu_backward_(Tensor(a!) weight_grad, Tensor grad, Tensor h, Tensor actions) "
      "-> (Tensor state_grad, Tensor bias_grad)");
  m.def(
      "outer_relu_backward(Tensor y_grad, Tensor x, Tensor? bias, Tensor weight, Tensor? factor, bool sums) "
      "-> (Tensor grad, Tensor bias_grad, Tensor weight_grad, Tensor last_bias_grad)");
  m.def(
      "conservative_head(Tensor q, Tensor target, Tensor offsets, Tensor bound, Tensor weight, float temperature, "
      "float floor, bool include_data) -> (Tensor loss, Tensor statistics, Tensor q_grad)");
}
