// All of a file isa/<set>/nets.cpp, included once per instruction set inside an anonymous namespace, after the
// constants that layers_impl.h asks for.
#include "layers_impl.h"
// They need what is above.
#include "critic_impl.h"
#include "mlp_impl.h"
#include "tanh_gaussian_impl.h"

template <typename Products, typename T = typename Products::Scalar>
constexpr NetworkKernels<T> make_kernels() {
  return {{critic_workspace<Products>, critic_values<Products>, critic_conservative<Products>},
          {mlp_workspace<Products>, mlp_forward<Products>, mlp_backward<Products>},
          {tanh_gaussian_workspace<T>, tanh_gaussian<T>, tanh_gaussian_backward<T>}};
}
