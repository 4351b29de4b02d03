// Fully connected ReLU networks, included once per instruction set after layers_impl.h.

// One network's first and last layer around its hidden ones, for one chunk of rows.
template <typename Products>
struct MlpWork {
  using T = typename Products::Scalar;
  Panels<T> x, y;  // inputs and outputs, or their gradients
  Trunk<Products> trunk;
  // The way forward.
  Panels<T> first, last;  // weights
  T* last_bias;
  // The way back.
  Panels<T> first_back, last_back;  // transposed weights
  Panels<T> x_grad;
  Panels<T> first_grad, last_grad;  // of the weights
  T *last_bias_grad, *zeros;

  // Lays everything out; with a null arena this only counts.
  MlpWork(const Mlp<T>& m, Needs needs, bool own_hidden, Arena<T>& arena)
      : x(arena.panels(kMlpChunk, m.inputs)),
        y(arena.panels(kMlpChunk, m.widths[m.layers - 1])),
        trunk(m.widths, m.layers - 1, kMlpChunk, needs, own_hidden, arena) {
    const int64_t outputs = y.columns, before = trunk.top().columns, behind = m.widths[0];
    if (needs.forward) {
      first = arena.panels(m.inputs, behind);
      last = arena.panels(before, outputs);
      last_bias = arena.take(round_up(outputs, kPanel<T>));
    }
    if (needs.back) {
      first_back = arena.panels(behind, m.inputs);
      last_back = arena.panels(outputs, before);
      x_grad = arena.panels(kMlpChunk, m.inputs);
      zeros = arena.take(round_up(m.inputs, kPanel<T>));
    }
    if (needs.parameter_grads) {
      first_grad = arena.panels(round_up(m.inputs, kPanel<T>), behind);
      last_grad = arena.panels(round_up(before, kPanel<T>), outputs);
      last_bias_grad = arena.take(round_up(outputs, kPanel<T>));
    }
  }

  void load_parameters(const Mlp<T>& m, int64_t net) {
    const int64_t output = m.layers - 1, before = trunk.top().columns, behind = m.widths[0], outputs = y.columns;
    const T* w_first = m.weights[0] + net * m.inputs * behind;
    const T* w_last = m.weights[output] + net * before * outputs;
    trunk.load_parameters(m.weights, m.biases, net);
    if (trunk.needs.forward) {
      pack(w_first, m.inputs, behind, behind, 1, first);
      pack(w_last, before, outputs, outputs, 1, last);
      pack_vector(m.biases[output] + net * outputs, outputs, last_bias);
    }
    if (trunk.needs.back) {
      pack(w_first, behind, m.inputs, 1, behind, first_back);
      pack(w_last, outputs, before, 1, outputs, last_back);
      fill(zeros, round_up(m.inputs, kPanel<T>), T(0));
    }
  }

  // Points to what is kept of the chunk that starts at this row of the network.
  void use_hidden(const Mlp<T>& m, T* kept, int64_t net, int64_t row) {
    T* next = kept + (net * m.chunks + row / kMlpChunk) * kMlpChunk * m.kept;
    for (int64_t l = 0; l < trunk.layers; ++l) {
      trunk.hidden[l].data = next;
      next += panel_scalars<T>(kMlpChunk, m.widths[l]);
    }
  }
};

inline Needs mlp_needs(bool backward, bool parameters) { return {!backward, backward, backward && parameters}; }

template <typename Products, typename T = typename Products::Scalar>
int64_t mlp_workspace(const Mlp<T>& m, bool backward) {
  Arena<T> arena{nullptr};
  MlpWork<Products> work(m, mlp_needs(backward, true), !backward, arena);
  return arena.used;
}

template <typename Products, typename T = typename Products::Scalar>
void mlp_forward(const Mlp<T>& m, const MlpRange& range, T* space, T* hidden, T* out) {
  Arena<T> arena{space};
  MlpWork<Products> work(m, mlp_needs(false, false), hidden == nullptr, arena);
  Trunk<Products>& trunk = work.trunk;
  const Panels<T> none{nullptr, 0, 0};
  const int64_t outputs = work.y.columns;
  work.load_parameters(m, range.net);
  for (int64_t row = range.begin; row < range.end; row += kMlpChunk) {
    const int64_t rows = smaller(kMlpChunk, range.end - row), at = range.net * m.rows + row;
    if (hidden != nullptr) work.use_hidden(m, hidden, range.net, row);
    trunk.cut_evenly(rows, 1, trunk.tiles);
    pack(m.x + at * m.inputs, rows, m.inputs, m.inputs, 1, work.x);
    layer<Dense<T>, Layer::kRelu>(work.x, trunk.tiles, work.first, m.inputs, trunk.bias[0], none, 1, none,
                                  trunk.hidden[0]);
    trunk.forward();
    layer<Dense<T>, Layer::kPlain>(trunk.top(), trunk.tiles, work.last, trunk.top().columns, work.last_bias, none, 1,
                                   none, work.y);
    unpack(work.y, rows, out + at * outputs);
  }
}

// weight_grads and bias_grads are those of this range alone; null where they are not wanted.
template <typename Products, typename T = typename Products::Scalar>
void mlp_backward(const MlpGradient<T>& gradient, const MlpRange& range, T* space, T* const* weight_grads,
                  T* const* bias_grads) {
  const Mlp<T>& m = gradient.mlp;
  const bool parameters = weight_grads != nullptr;
  Arena<T> arena{space};
  MlpWork<Products> work(m, mlp_needs(true, parameters), false, arena);
  Trunk<Products>& trunk = work.trunk;
  const Panels<T> none{nullptr, 0, 0};
  const int64_t outputs = work.y.columns;
  work.load_parameters(m, range.net);
  if (parameters) {
    trunk.clear_gradients();
    clear(work.first_grad), clear(work.last_grad);
    fill(work.last_bias_grad, round_up(outputs, kPanel<T>), T(0));
  }
  for (int64_t row = range.begin; row < range.end; row += kMlpChunk) {
    const int64_t rows = smaller(kMlpChunk, range.end - row), at = range.net * m.rows + row;
    work.use_hidden(m, const_cast<T*>(gradient.hidden), range.net, row);  // read only
    trunk.cut_evenly(rows, 1, trunk.tiles);
    pack(gradient.y_grad + at * outputs, rows, outputs, outputs, 1, work.y);
    trunk.up.columns = trunk.top().columns;
    layer<Dense<T>, Layer::kMask>(work.y, trunk.tiles, work.last_back, outputs, nullptr, none, 1, trunk.top(),
                                  trunk.up);
    if (parameters) {
      Dense<T>::accumulate(trunk.top(), work.y, rows, work.last_grad);
      accumulate_columns(work.y, 0, rows, work.last_bias_grad, kPanel<T>);
    }
    trunk.backward();
    if (parameters) {
      pack(m.x + at * m.inputs, rows, m.inputs, m.inputs, 1, work.x);
      Dense<T>::accumulate(work.x, trunk.up, rows, work.first_grad);
      accumulate_columns(trunk.up, 0, rows, trunk.bias_grad[0], kPanel<T>);
    }
    if (gradient.x_grad != nullptr) {
      layer<Dense<T>, Layer::kPlain>(trunk.up, trunk.tiles, work.first_back, m.widths[0], work.zeros, none, 1, none,
                                     work.x_grad);
      unpack(work.x_grad, rows, gradient.x_grad + at * m.inputs);
    }
  }
  if (!parameters) return;
  const int64_t output = m.layers - 1;
  unpack(work.first_grad, m.inputs, weight_grads[0]);
  trunk.unpack_gradients(weight_grads, bias_grads);
  unpack(work.last_grad, trunk.top().columns, weight_grads[output]);
  for (int64_t j = 0; j < outputs; ++j) bias_grads[output][j] = work.last_bias_grad[j];
}
