// The fused critic step, included once per instruction set after layers_impl.h.

// One critic's first and last layer around its hidden ones, for one chunk of states.
template <typename Products>
struct CriticWork {
  using T = typename Products::Scalar;
  // Rows of a chunk: its activations stay in the second-level cache, panels of it in the first.
  static constexpr int64_t kChunkRows = 128;

  int64_t chunk_states;
  Trunk<Products> trunk;
  Panels<T> state_weight, action_weight;  // halves of the first layer, [inputs, width]
  T* last;                                // weights of the output
  Panels<T> states, actions, base;
  T* q;
  Tiles state_tiles;
  // Gradients.
  T* q_grad;
  Panels<T> base_grad, state_weight_grad, action_weight_grad;
  T* last_grad;

  static int64_t states_of_a_chunk(const Critics<T>& c) {
    return smaller(c.batch, kChunkRows / c.actions > 0 ? kChunkRows / c.actions : 1);
  }

  // Lays everything out; with a null arena this only counts.
  CriticWork(const Critics<T>& c, bool gradient, Arena<T>& arena)
      : chunk_states(states_of_a_chunk(c)),
        trunk(c.widths, c.layers - 1, chunk_states * c.actions, {true, gradient, gradient}, true, arena) {
    const int64_t rows = chunk_states * c.actions, width = trunk.top().columns;
    state_weight = arena.panels(c.state_dim, c.widths[0]);
    action_weight = arena.panels(c.action_dim, c.widths[0]);
    last = arena.take(round_up(width, kPanel<T>));
    states = arena.panels(chunk_states, c.state_dim);
    actions = arena.panels(rows, c.action_dim);
    base = arena.panels(chunk_states, c.widths[0]);
    q = arena.take(rows);
    state_tiles.at = arena.template take_as<Tile>(most_tiles(chunk_states));
    if (!gradient) return;
    q_grad = arena.take(rows);
    base_grad = arena.panels(chunk_states, c.widths[0]);
    state_weight_grad = arena.panels(round_up(c.state_dim, kPanel<T>), c.widths[0]);
    action_weight_grad = arena.panels(round_up(c.action_dim, kPanel<T>), c.widths[0]);
    last_grad = arena.take(round_up(width, kPanel<T>));
  }

  void load_parameters(const Critics<T>& c, int64_t net) {
    const int64_t first = c.widths[0], width = trunk.top().columns;
    const T* w = c.weights[0] + net * (c.state_dim + c.action_dim) * first;
    pack(w, c.state_dim, first, first, 1, state_weight);
    pack(w + c.state_dim * first, c.action_dim, first, first, 1, action_weight);
    trunk.load_parameters(c.weights, c.biases, net);
    pack_vector(c.weights[c.layers - 1] + net * width, width, last);
  }

  void clear_gradients() {
    clear(state_weight_grad);
    clear(action_weight_grad);
    trunk.clear_gradients();
    fill(last_grad, round_up(trunk.top().columns, kPanel<T>), T(0));
  }
};

// q of the states [first, first + count) of one seed.
template <typename Products, typename T = typename Products::Scalar>
void critic_forward(const Critics<T>& c, int64_t seed, int64_t net, int64_t first, int64_t count,
                    CriticWork<Products>& work) {
  const int64_t rows = count * c.actions;
  const T* states = c.states + (seed * c.batch + first) * c.state_dim;
  const T* actions = c.action_rows + (seed * c.batch + first) * c.actions * c.action_dim;
  const Panels<T> none{nullptr, 0, 0};
  Trunk<Products>& trunk = work.trunk;
  pack(states, count, c.state_dim, c.state_dim, 1, work.states);
  pack(actions, rows, c.action_dim, c.action_dim, 1, work.actions);
  trunk.cut_evenly(count, 1, work.state_tiles);
  trunk.cut_evenly(count, c.actions, trunk.tiles);
  layer<Dense<T>, Layer::kPlain>(work.states, work.state_tiles, work.state_weight, c.state_dim, trunk.bias[0], none, 1,
                                 none, work.base);
  layer<Dense<T>, Layer::kState>(work.actions, trunk.tiles, work.action_weight, c.action_dim, nullptr, work.base,
                                 c.actions, none, trunk.hidden[0]);
  trunk.forward();
  const Panels<T>& top = trunk.top();
  const T bias = c.biases[c.layers - 1][net];
  for (int64_t r = 0; r < rows; ++r) {
    Vector<T> s0{}, s1{};
    for (int64_t p = 0; p < top.panels(); ++p) {
      const T* h = top.panel(p) + r * kPanel<T>;
      s0 += load(h) * load(work.last + p * kPanel<T>);
      s1 += load(h + kLanes<T>) * load(work.last + p * kPanel<T> + kLanes<T>);
    }
    s0 += s1;
    T sum = bias;
    for (int64_t i = 0; i < kLanes<T>; ++i) sum += s0[i];
    work.q[r] = sum;
  }
}

// Moves the rows whose q_grad is not zero together, in order, and cuts them into tiles. The others add nothing to any
// gradient: Cal-QL's policy actions below the bound, states at the floor, weights of the log-sum-exp that vanish.
template <typename Products, typename T = typename Products::Scalar>
void drop_idle_rows(const Critics<T>& c, int64_t count, CriticWork<Products>& work) {
  const int64_t rows = count * c.actions;
  Trunk<Products>& trunk = work.trunk;
  int64_t busy = 0;
  for (int64_t r = 0; r < rows; ++r) busy += work.q_grad[r] != 0;
  const bool pays = 16 * busy < 15 * rows;  // moving costs as much as some 2 % of the rows' products
  auto move = [](const Panels<T>& x, int64_t from, int64_t to) {
    for (int64_t p = 0; p < x.panels(); ++p) {
      const T* in = x.panel(p) + from * kPanel<T>;
      T* out = x.panel(p) + to * kPanel<T>;
      store(out, load(in)), store(out + kLanes<T>, load(in + kLanes<T>));
    }
  };
  int64_t kept = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (r % c.actions == 0) trunk.first_row[r / c.actions] = kept;
    if (pays && work.q_grad[r] == 0) continue;
    if (kept < r) {
      work.q_grad[kept] = work.q_grad[r];
      move(work.actions, r, kept);
      for (int64_t l = 0; l < trunk.layers; ++l) move(trunk.hidden[l], r, kept);
    }
    ++kept;
  }
  trunk.first_row[count] = kept;
  if (kept < rows) cut(trunk.first_row, count, trunk.tiles);
}

// Parameter gradients of sum_r q_grad[r] q[r] over the rows that `critic_forward` and `drop_idle_rows` left.
template <typename Products, typename T = typename Products::Scalar>
void critic_backward(int64_t count, CriticWork<Products>& work, T* output_bias_grad) {
  Trunk<Products>& trunk = work.trunk;
  const int64_t rows = trunk.tiles.rows;
  const Panels<T>& top = trunk.top();
  Panels<T>& up = trunk.up;
  up.columns = top.columns;
  for (int64_t p = 0; p < top.panels(); ++p) {
    const Vector<T> w0 = load(work.last + p * kPanel<T>), w1 = load(work.last + p * kPanel<T> + kLanes<T>);
    Vector<T> s0{}, s1{};
    const T* h = top.panel(p);
    T* g = up.panel(p);
    for (int64_t r = 0; r < rows; ++r, h += kPanel<T>, g += kPanel<T>) {
      const Vector<T> h0 = load(h), h1 = load(h + kLanes<T>);
      const T q_grad = work.q_grad[r];
      s0 += q_grad * h0, s1 += q_grad * h1;
      store(g, masked<T>(q_grad * w0, h0)), store(g + kLanes<T>, masked<T>(q_grad * w1, h1));
    }
    T* sum = work.last_grad + p * kPanel<T>;
    store(sum, load(sum) + s0), store(sum + kLanes<T>, load(sum + kLanes<T>) + s1);
  }
  for (int64_t r = 0; r < rows; ++r) *output_bias_grad += work.q_grad[r];
  trunk.backward();
  Dense<T>::accumulate(work.actions, up, rows, work.action_weight_grad);
  const Panels<T>& base = work.base_grad;
  clear(base);
  for (int64_t i = 0; i < count; ++i) {
    accumulate_columns(up, trunk.first_row[i], trunk.first_row[i + 1], base.data + i * kPanel<T>,
                       base.rows * kPanel<T>);
  }
  Dense<T>::accumulate(work.states, base, count, work.state_weight_grad);
  accumulate_columns(base, 0, count, trunk.bias_grad[0], kPanel<T>);
}

// Losses of the chunk's states, and q_grad.
template <typename Products, typename T = typename Products::Scalar>
void loss_rows(const ConservativeLoss<T>& loss, int64_t seed, int64_t first, int64_t count, CriticWork<Products>& work,
               LossSums<T>& sums) {
  const int64_t n = loss.sampled, m = 3 * n;
  const T share = T(1) / static_cast<T>(loss.critics.batch), weight = loss.weight[seed] * share;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t state = seed * loss.critics.batch + first + i;
    const T* q = work.q + i * (1 + m);
    T* grad = work.q_grad + i * (1 + m);
    const T* offset = loss.offsets + state * m;
    const T bound = loss.bound[state], target = loss.target[state];
    // v_j / T less their maximum, first kept where the gradient will stand
    T top = loss.include_data ? q[0] : offset[0] + q[1];
    for (int64_t j = 1; j <= m; ++j) {
      const T value = offset[j - 1] + (j > n && q[j] < bound ? bound : q[j]);
      grad[j] = value;
      top = value > top ? value : top;
    }
    T total = loss.include_data ? exponential((q[0] - top) / loss.temperature) : T(0);
    const T data_part = total;
    for (int64_t j = 1; j <= m; ++j) {
      grad[j] = exponential((grad[j] - top) / loss.temperature);
      total += grad[j];
    }
    const T difference = top + loss.temperature * logarithm(total) - q[0];
    // As torch's clamp, which passes the gradient where the value lies on the bound.
    const bool open = !(difference < loss.floor);
    sums.gap += open ? difference : loss.floor;
    const T error = q[0] - target, scale = open ? weight / total : T(0);
    sums.error += error * error;
    sums.q_data += q[0];
    grad[0] = 2 * error * share - (open ? weight : T(0)) + scale * data_part;
    for (int64_t j = 1; j <= n; ++j) {
      sums.q_uniform += q[j];
      grad[j] *= scale;
    }
    for (int64_t j = n + 1; j <= m; ++j) {
      sums.q_policy += q[j];
      const bool below = q[j] < bound;
      sums.bound += below ? T(1) : T(0);
      // As torch.maximum, which gives each of two equal values half of the gradient.
      grad[j] = below ? T(0) : q[j] == bound ? grad[j] * scale / 2 : grad[j] * scale;
    }
  }
}

template <typename Products, typename T = typename Products::Scalar>
int64_t critic_workspace(const Critics<T>& c, bool gradient) {
  Arena<T> arena{nullptr};
  CriticWork<Products> work(c, gradient, arena);
  return arena.used;
}

template <typename Products, typename T = typename Products::Scalar>
void critic_values(const Critics<T>& c, const CriticRange& range, T* space, T* out) {
  Arena<T> arena{space};
  CriticWork<Products> work(c, false, arena);
  const int64_t net = range.seed * c.members + range.member;
  work.load_parameters(c, net);
  for (int64_t first = range.begin; first < range.end; first += work.chunk_states) {
    const int64_t count = smaller(work.chunk_states, range.end - first);
    critic_forward(c, range.seed, net, first, count, work);
    T* to = out + (net * c.batch + first) * c.actions;
    for (int64_t r = 0; r < count * c.actions; ++r) to[r] = work.q[r];
  }
}

template <typename Products, typename T = typename Products::Scalar>
LossSums<T> critic_conservative(const ConservativeLoss<T>& loss, const CriticRange& range, T* space,
                                T* const* weight_grads, T* const* bias_grads) {
  const Critics<T>& c = loss.critics;
  Arena<T> arena{space};
  CriticWork<Products> work(c, true, arena);
  const int64_t net = range.seed * c.members + range.member;
  work.load_parameters(c, net);
  work.clear_gradients();
  LossSums<T> sums;
  T output_bias_grad = 0;
  for (int64_t first = range.begin; first < range.end; first += work.chunk_states) {
    const int64_t count = smaller(work.chunk_states, range.end - first);
    critic_forward(c, range.seed, net, first, count, work);
    loss_rows(loss, range.seed, first, count, work, sums);
    drop_idle_rows(c, count, work);
    critic_backward(count, work, &output_bias_grad);
  }
  unpack(work.state_weight_grad, c.state_dim, weight_grads[0]);
  unpack(work.action_weight_grad, c.action_dim, weight_grads[0] + c.state_dim * c.widths[0]);
  work.trunk.unpack_gradients(weight_grads, bias_grads);
  const int64_t output = c.layers - 1, width = work.trunk.top().columns;
  for (int64_t j = 0; j < width; ++j) weight_grads[output][j] = work.last_grad[j];
  bias_grads[output][0] = output_bias_grad;
  return sums;
}
