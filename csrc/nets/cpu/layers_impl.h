// Fully connected layers with a ReLU, forward and back; included once per instruction set inside an anonymous
// namespace, after
//   QCSE_VECTOR_BYTES  size of a vector register, a macro: 64 and 32 bring intrinsics along
//   kRows              most rows of a register tile: 2 * kRows accumulators and 3 more registers must fit
//   kFeatures          as kRows, for dense weight gradients; divides the panel width
//
// Every matrix is kept in panels: kPanel<T> = two vectors' worth of columns, row after row, panel after panel. A
// product then reads its right factor as vectors and its left one by broadcasting single numbers.

constexpr int kBytes = QCSE_VECTOR_BYTES;

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kBytes)));
};
template <int Bytes>
struct UnsignedOf;
template <>
struct UnsignedOf<4> {
  using Type = uint32_t;
};
template <>
struct UnsignedOf<8> {
  using Type = uint64_t;
};
template <typename T>
using Vector = typename VectorOf<T>::Type;
template <typename T>
constexpr int64_t kLanes = kBytes / sizeof(T);
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
inline Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <typename T>
inline void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <typename T>
inline void fill(T* p, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) p[i] = value;
}

inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }
inline float logarithm(float x) { return __builtin_logf(x); }
inline double logarithm(double x) { return __builtin_log(x); }

// A matrix in panels: element (row, column) at data[(column / kPanel * rows + row) * kPanel + column % kPanel].
template <typename T>
struct Panels {
  T* data;
  int64_t rows;     // between one panel and the next
  int64_t columns;  // those that count; the rest of the last panel is zero
  T* panel(int64_t p) const { return data + p * rows * kPanel<T>; }
  int64_t panels() const { return (columns + kPanel<T> - 1) / kPanel<T>; }
};

template <typename T>
int64_t panel_scalars(int64_t rows, int64_t columns) {
  return rows * round_up(columns, kPanel<T>);
}

template <typename T>
void pack(const T* source, int64_t rows, int64_t columns, int64_t row_step, int64_t column_step, const Panels<T>& to) {
  for (int64_t p = 0; p < to.panels(); ++p) {
    T* out = to.panel(p);
    const int64_t first = p * kPanel<T>, width = smaller(columns - first, kPanel<T>);
    for (int64_t r = 0; r < rows; ++r, out += kPanel<T>) {
      const T* in = source + r * row_step + first * column_step;
      for (int64_t c = 0; c < width; ++c) out[c] = in[c * column_step];
      for (int64_t c = width; c < kPanel<T>; ++c) out[c] = 0;
    }
  }
}

// Hands out pieces of the caller's workspace, each on a cache line of its own.
template <typename T>
struct Arena {
  T* next;
  int64_t used = 0;
  T* take(int64_t scalars) {
    T* piece = next == nullptr ? nullptr : next + used;
    used += round_up(scalars, 64 / static_cast<int64_t>(sizeof(T)));
    return piece;
  }
  template <typename U>
  U* take_as(int64_t count) {
    return reinterpret_cast<U*>(take(count * static_cast<int64_t>(sizeof(U)) / static_cast<int64_t>(sizeof(T)) + 1));
  }
  Panels<T> panels(int64_t rows, int64_t columns) {
    // Register tiles of features may run over the last column's feature tile, never over a panel.
    return {take(panel_scalars<T>(rows, columns)), rows, columns};
  }
};

// Consecutive rows, at most kRows, that are multiplied together.
struct Tile {
  int64_t row, rows;
};
struct Tiles {
  Tile* at;
  int64_t count;
  int64_t rows;  // of all of them
};

// Cuts each state's rows, or those of a few states that have few, into tiles of equal size: rows of one state are
// alike, and zero in the same columns. Rows of state i: [first_row[i], first_row[i + 1]).
inline void cut(const int64_t* first_row, int64_t states, Tiles& tiles) {
  tiles.count = 0;
  tiles.rows = first_row[states];
  for (int64_t i = 0; i < states;) {
    const int64_t begin = first_row[i++];
    while (i < states && first_row[i] - begin < kRows) ++i;
    const int64_t rows = first_row[i] - begin, parts = (rows + kRows - 1) / kRows;
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t from = rows * p / parts;
      tiles.at[tiles.count++] = {begin + from, rows * (p + 1) / parts - from};
    }
  }
}

// At most so many tiles come of `rows` rows: only the last of those that are cut together can be fewer than kRows.
inline int64_t most_tiles(int64_t rows) { return 2 * rows / kRows + 1; }

template <int N>
struct Number {
  static constexpr int value = N;
};

// body(Number<rows>) for rows = 1 .. kRows.
template <int Rows = kRows, typename Body>
inline void with_rows(int64_t rows, const Body& body) {
  if (rows == Rows) return body(Number<Rows>());
  if constexpr (Rows > 1) with_rows<Rows - 1>(rows, body);
}

// What a factor is made ready for: a product along a layer or back through it, or its weights' gradient.
enum class Use { kProduct, kGradient };

// How products hold their factors. This one takes them as they are, and every number of them: the first layer's are
// few and seldom zero.
template <typename T>
struct Dense {
  using Scalar = T;
  using Factor = Panels<T>;  // inputs and gradients
  using Weight = Panels<T>;

  // acc[i] += x(row + i, 0 .. depth) times the rows of one weight panel.
  template <int Rows>
  static inline __attribute__((always_inline)) void multiply(const Factor& x, int64_t, int64_t row, const T* weight,
                                                             int64_t depth, Vector<T> (&acc)[Rows][2]) {
    for (int64_t first = 0; first < depth; first += kPanel<T>) {
      const T* in = x.panel(first / kPanel<T>) + row * kPanel<T>;
      const int64_t width = smaller(depth - first, kPanel<T>);
      for (int64_t c = 0; c < width; ++c, weight += kPanel<T>) {
        const Vector<T> w0 = load(weight), w1 = load(weight + kLanes<T>);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
          const T factor = in[i * kPanel<T> + c];
          acc[i][0] += factor * w0;
          acc[i][1] += factor * w1;
        }
      }
    }
  }

  // grad (panels of outputs, one row per input) += x^T g over `rows` rows.
  static void accumulate(const Factor& x, const Factor& g, int64_t rows, const Panels<T>& grad) {
    for (int64_t first = 0; first < x.columns; first += kFeatures) {
      const T* in = x.panel(first / kPanel<T>) + first % kPanel<T>;
      for (int64_t p = 0; p < g.panels(); ++p) {
        T* sum = grad.panel(p) + first * kPanel<T>;
        Vector<T> acc[kFeatures][2];
#pragma GCC unroll 16
        for (int i = 0; i < kFeatures; ++i) {
          acc[i][0] = load(sum + i * kPanel<T>), acc[i][1] = load(sum + i * kPanel<T> + kLanes<T>);
        }
        const T* a = in;
        const T* b = g.panel(p);
        for (int64_t r = 0; r < rows; ++r, a += kPanel<T>, b += kPanel<T>) {
          const Vector<T> g0 = load(b), g1 = load(b + kLanes<T>);
#pragma GCC unroll 16
          for (int i = 0; i < kFeatures; ++i) {
            acc[i][0] += a[i] * g0;
            acc[i][1] += a[i] * g1;
          }
        }
#pragma GCC unroll 16
        for (int i = 0; i < kFeatures; ++i) {
          store(sum + i * kPanel<T>, acc[i][0]), store(sum + i * kPanel<T> + kLanes<T>, acc[i][1]);
        }
      }
    }
  }
};

// The numbers of the set bits of each byte, in order.
struct SetBits {
  uint32_t numbers[256][8] = {};
  uint8_t count[256] = {};
  constexpr SetBits() {
    for (int byte = 0; byte < 256; ++byte) {
      for (int i = 0; i < 8; ++i) {
        if (byte >> i & 1) numbers[byte][count[byte]++] = static_cast<uint32_t>(i);
      }
    }
  }
};
constexpr SetBits kSetBits;
typedef uint32_t Numbers __attribute__((vector_size(32)));

// Calls body(8 numbers, how many of them count) for the columns of a panel whose bit is set, in order.
template <typename Body>
inline void for_set_bits(uint32_t bits, const Body& body) {
  for (uint32_t first = 0; first < 32 && bits >> first != 0; first += 8) {
    const uint32_t byte = bits >> first & 255;
    Numbers numbers;
    __builtin_memcpy(&numbers, kSetBits.numbers[byte], sizeof numbers);
    body(numbers + first, kSetBits.count[byte]);
  }
}

// A bit for each lane that is not zero.
template <typename Unsigned>
inline uint32_t nonzero_lanes(Vector<Unsigned> v) {
#if QCSE_VECTOR_BYTES == 64
  const __m512i bits = reinterpret_cast<__m512i>(v);
  if constexpr (sizeof(Unsigned) == 4) return _mm512_test_epi32_mask(bits, bits);
  if constexpr (sizeof(Unsigned) == 8) return _mm512_test_epi64_mask(bits, bits);
#elif QCSE_VECTOR_BYTES == 32
  const Vector<Unsigned> set = v != 0 ? ~Vector<Unsigned>{} : Vector<Unsigned>{};
  if constexpr (sizeof(Unsigned) == 4) return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(set)));
  if constexpr (sizeof(Unsigned) == 8) return static_cast<uint32_t>(_mm256_movemask_pd(reinterpret_cast<__m256d>(set)));
#else
  uint32_t bits = 0;
  for (int64_t i = 0; i < kLanes<Unsigned>; ++i) bits |= uint32_t{v[i] != 0} << i;
  return bits;
#endif
}

// A bit for each of a panel's columns in which some row of the tile is not zero.
template <typename T>
inline uint32_t columns_in_use(const Panels<T>& x, const Tile& tile, int64_t p) {
  using Unsigned = typename UnsignedOf<sizeof(T)>::Type;
  static_assert(kPanel<T> <= 32);
  const Unsigned* in = reinterpret_cast<const Unsigned*>(x.panel(p) + tile.row * kPanel<T>);
  Vector<Unsigned> any[2] = {};
  for (int64_t r = 0; r < tile.rows; ++r, in += kPanel<T>) any[0] |= load(in), any[1] |= load(in + kLanes<T>);
  const uint32_t bits = nonzero_lanes<Unsigned>(any[0]) | nonzero_lanes<Unsigned>(any[1]) << kLanes<T>;
  // Behind the last column a row that is not finite holds its products with zeros, which are not zero.
  const int64_t width = x.columns - p * kPanel<T>;
  return width < kPanel<T> ? bits & ((uint32_t{1} << width) - 1) : bits;
}

// Products between hidden layers, whose left factor comes out of a ReLU: some half of its numbers are zero. A column
// that is zero in all rows of a tile is left out, which changes nothing but the sign of a zero (and hides a weight
// behind it that is infinite or not a number).
template <typename T>
struct Sparse {
  using Scalar = T;
  using Weight = Panels<T>;
  struct Factor {
    Panels<T> x;
    // Of tile t, from [t * stride] on, for each column that counts: where it is in a row of x, and where its row is in
    // a panel of the weights or of their gradients; in bytes.
    uint32_t *columns, *weights;
    int64_t* counts;
    int64_t stride;
  };

  static Factor factor(Arena<T>& arena, int64_t rows, int64_t width) {
    const int64_t stride = width + 8;  // whole vectors of 8 are written
    const int64_t tiles = most_tiles(rows);
    uint32_t* columns = arena.template take_as<uint32_t>(tiles * stride);
    uint32_t* weights = arena.template take_as<uint32_t>(tiles * stride);
    return {{nullptr, 0, 0}, columns, weights, arena.template take_as<int64_t>(tiles), stride};
  }
  static Weight weight(Arena<T>& arena, int64_t inputs, int64_t outputs) { return arena.panels(inputs, outputs); }
  static void pack_weight(const T* source, int64_t inputs, int64_t outputs, int64_t row_step, int64_t column_step,
                          const Weight& to) {
    pack(source, inputs, outputs, row_step, column_step, to);
  }

  static const T* at(const T* base, uint32_t bytes) {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(base) + bytes);
  }
  static T* at(T* base, uint32_t bytes) { return reinterpret_cast<T*>(reinterpret_cast<char*>(base) + bytes); }

  // Lists the columns of each tile.
  static void convert(const Panels<T>& from, const Tiles& tiles, Use, Factor& to) {
    constexpr uint32_t kRowBytes = kPanel<T> * sizeof(T);
    const int64_t panel_step = from.rows * kPanel<T>;
    to.x = from;
    for (int64_t t = 0; t < tiles.count; ++t) {
      uint32_t* columns = to.columns + t * to.stride;
      uint32_t* weights = to.weights + t * to.stride;
      int64_t count = 0;
      for (int64_t p = 0; p < from.panels(); ++p) {
        for_set_bits(columns_in_use(from, tiles.at[t], p), [&](const Numbers& numbers, int64_t set) {
          const Numbers column = (numbers + static_cast<uint32_t>(p * panel_step)) * static_cast<uint32_t>(sizeof(T));
          const Numbers weight = (numbers + static_cast<uint32_t>(p * kPanel<T>)) * kRowBytes;
          __builtin_memcpy(columns + count, &column, sizeof column);
          __builtin_memcpy(weights + count, &weight, sizeof weight);
          count += set;
        });
      }
      to.counts[t] = count;
    }
  }

  // acc[i] += x(row + i, all columns) times the rows of one weight panel.
  template <int Rows>
  static inline __attribute__((always_inline)) void multiply(const Factor& x, int64_t tile, int64_t row,
                                                             const T* weight, int64_t, Vector<T> (&acc)[Rows][2]) {
    const uint32_t *columns = x.columns + tile * x.stride, *weights = x.weights + tile * x.stride;
    const T* in = x.x.data + row * kPanel<T>;
    const int64_t count = x.counts[tile];
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; ++k) {
      const T* w = at(weight, weights[k]);
      const T* column = at(in, columns[k]);
      const Vector<T> w0 = load(w), w1 = load(w + kLanes<T>);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const T factor = column[i * kPanel<T>];
        acc[i][0] += factor * w0;
        acc[i][1] += factor * w1;
      }
    }
  }

  // One panel of grad += x^T g over one tile, whose rows of g stay in registers.
  template <int Rows>
  static void add_tile(const Factor& x, int64_t tile, int64_t row, const T* g, T* grad) {
    Vector<T> g_rows[Rows][2];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      g_rows[i][0] = load(g + (row + i) * kPanel<T>), g_rows[i][1] = load(g + (row + i) * kPanel<T> + kLanes<T>);
    }
    const uint32_t *columns = x.columns + tile * x.stride, *weights = x.weights + tile * x.stride;
    const T* in = x.x.data + row * kPanel<T>;
    const int64_t count = x.counts[tile];
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; ++k) {
      T* sum = at(grad, weights[k]);
      const T* column = at(in, columns[k]);
      Vector<T> s0 = load(sum), s1 = load(sum + kLanes<T>);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const T factor = column[i * kPanel<T>];
        s0 += factor * g_rows[i][0];
        s1 += factor * g_rows[i][1];
      }
      store(sum, s0), store(sum + kLanes<T>, s1);
    }
  }
};

// The ReLU; not-a-number stays, as it does in torch, for a run that diverges must show it.
template <typename T>
inline Vector<T> positive(Vector<T> v) {
  return 0 > v ? Vector<T>{} : v;
}

// The gradient v through the ReLU that gave `open`; not-a-number lets it pass, as in torch.
template <typename T>
inline Vector<T> masked(Vector<T> v, Vector<T> open) {
  return open <= 0 ? Vector<T>{} : v;
}

// How a layer's sums begin and end.
enum class Layer {
  kPlain,  // starts from the bias, stays as it is
  kState,  // starts from a row that `group` consecutive rows share, ends with the ReLU
  kRelu,   // starts from the bias, ends with the ReLU
  kMask,   // starts from 0, is the gradient through the ReLU that gave `gate`
};

template <typename Products, Layer kind, int Rows, typename T = typename Products::Scalar>
void layer_tile(const typename Products::Factor& x, int64_t tile, int64_t row, int64_t p,
                const typename Products::Weight& weight, int64_t depth, const T* bias, const Panels<T>& start,
                int64_t group, const Panels<T>& gate, const Panels<T>& out) {
  Vector<T> acc[Rows][2];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    if constexpr (kind == Layer::kState) {
      const T* from = start.panel(p) + (row + i) / group * kPanel<T>;
      acc[i][0] = load(from), acc[i][1] = load(from + kLanes<T>);
    } else if constexpr (kind == Layer::kMask) {
      acc[i][0] = acc[i][1] = Vector<T>{};
    } else {
      acc[i][0] = load(bias + p * kPanel<T>), acc[i][1] = load(bias + p * kPanel<T> + kLanes<T>);
    }
  }
  Products::template multiply<Rows>(x, tile, row, weight.panel(p), depth, acc);
  T* to = out.panel(p) + row * kPanel<T>;
  const T* open = kind == Layer::kMask ? gate.panel(p) + row * kPanel<T> : nullptr;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      Vector<T> v = acc[i][h];
      if constexpr (kind == Layer::kMask) v = masked<T>(v, load(open + i * kPanel<T> + h * kLanes<T>));
      if constexpr (kind == Layer::kRelu || kind == Layer::kState) v = positive<T>(v);
      store(to + i * kPanel<T> + h * kLanes<T>, v);
    }
  }
}

// out = x times weight. A panel of weights stays in the first-level cache for all tiles.
template <typename Products, Layer kind, typename T = typename Products::Scalar>
void layer(const typename Products::Factor& x, const Tiles& tiles, const typename Products::Weight& weight,
           int64_t depth, const typename Products::Scalar* bias, const Panels<T>& start, int64_t group,
           const Panels<T>& gate, const Panels<T>& out) {
  for (int64_t p = 0; p < out.panels(); ++p) {
    for (int64_t t = 0; t < tiles.count; ++t) {
      const Tile tile = tiles.at[t];
      with_rows(tile.rows, [&](auto rows) {
        layer_tile<Products, kind, rows.value>(x, t, tile.row, p, weight, depth, bias, start, group, gate, out);
      });
    }
  }
}

// grad (panels of outputs, one row per input) += x^T g.
template <typename Products, typename T = typename Products::Scalar>
void accumulate(const typename Products::Factor& x, const Panels<T>& g, const Tiles& tiles, const Panels<T>& grad) {
  for (int64_t p = 0; p < g.panels(); ++p) {
    for (int64_t t = 0; t < tiles.count; ++t) {
      const Tile tile = tiles.at[t];
      with_rows(tile.rows,
                [&](auto rows) { Products::template add_tile<rows.value>(x, t, tile.row, g.panel(p), grad.panel(p)); });
    }
  }
}

// sums (one row of panels, as long as the columns) += column sums of g over rows [begin, end).
template <typename T>
void accumulate_columns(const Panels<T>& g, int64_t begin, int64_t end, T* sums, int64_t panel_step) {
  for (int64_t p = 0; p < g.panels(); ++p) {
    T* sum = sums + p * panel_step;
    Vector<T> s0 = load(sum), s1 = load(sum + kLanes<T>);
    const T* row = g.panel(p) + begin * kPanel<T>;
    for (int64_t r = begin; r < end; ++r, row += kPanel<T>) s0 += load(row), s1 += load(row + kLanes<T>);
    store(sum, s0), store(sum + kLanes<T>, s1);
  }
}

template <typename T>
void unpack(const Panels<T>& from, int64_t rows, T* out) {
  for (int64_t p = 0; p < from.panels(); ++p) {
    const int64_t first = p * kPanel<T>, width = smaller(from.columns - first, kPanel<T>);
    for (int64_t r = 0; r < rows; ++r) {
      const T* in = from.panel(p) + r * kPanel<T>;
      for (int64_t c = 0; c < width; ++c) out[r * from.columns + first + c] = in[c];
    }
  }
}

template <typename T>
void clear(const Panels<T>& x) {
  fill(x.data, panel_scalars<T>(x.rows, x.columns), T(0));
}

// A vector of `width` numbers, with zeros up to whole panels.
template <typename T>
void pack_vector(const T* from, int64_t width, T* to) {
  for (int64_t j = 0; j < width; ++j) to[j] = from[j];
  for (int64_t j = width; j < round_up(width, kPanel<T>); ++j) to[j] = 0;
}

// What of the hidden layers is made ready.
struct Needs {
  bool forward, back, parameter_grads;
};

// The hidden layers of a network, whatever its first and last layer: one network's parameters in panels, and the
// activations and gradients of one chunk of rows. hidden[0] is the caller's to fill.
template <typename Products>
struct Trunk {
  using T = typename Products::Scalar;
  Needs needs;
  int64_t layers;                                                  // hidden layers
  const int64_t* widths;                                           // of each
  typename Products::Weight weight[kMaxLayers], back[kMaxLayers];  // of layers l >= 1, and their transposes
  T* bias[kMaxLayers];
  Panels<T> hidden[kMaxLayers];      // behind the ReLU
  typename Products::Factor factor;  // of the product that is being taken
  Panels<T> up, down;                // gradients of two activations at a time
  Panels<T> weight_grad[kMaxLayers];
  T* bias_grad[kMaxLayers];
  int64_t* first_row;  // of each group of rows that are alike
  Tiles tiles;

  // Lays everything out for at most `rows` rows; with a null arena this only counts. Where the caller brings the hidden
  // activations, it sets `data` of each.
  Trunk(const int64_t* widths_, int64_t layers_, int64_t rows, Needs needs_, bool own_hidden, Arena<T>& arena)
      : needs(needs_), layers(layers_), widths(widths_) {
    int64_t widest = 0;
    for (int64_t l = 0; l < layers; ++l) {
      const int64_t inputs = l > 0 ? widths[l - 1] : 0, width = widths[l];
      if (l > 0 && needs.forward) weight[l] = Products::weight(arena, inputs, width);
      if (l > 0 && needs.back) back[l] = Products::weight(arena, width, inputs);
      if (needs.forward) bias[l] = arena.take(round_up(width, kPanel<T>));
      hidden[l] = {own_hidden ? arena.take(panel_scalars<T>(rows, width)) : nullptr, rows, width};
      // Feature tiles of the products x^T g may end behind the last input: room for a whole panel of rows.
      if (l > 0 && needs.parameter_grads) weight_grad[l] = arena.panels(round_up(inputs, kPanel<T>), width);
      if (needs.parameter_grads) bias_grad[l] = arena.take(round_up(width, kPanel<T>));
      widest = widest > width ? widest : width;
    }
    factor = Products::factor(arena, rows, widest);
    first_row = arena.template take_as<int64_t>(rows + 1);
    tiles.at = arena.template take_as<Tile>(most_tiles(rows));
    if (!needs.back) return;
    up = arena.panels(rows, widest);
    down = arena.panels(rows, widest);
  }

  // weights[l] and biases[l] hold the parameters of layer l of all networks, one after the other.
  void load_parameters(const T* const* weights, const T* const* biases, int64_t net) {
    for (int64_t l = 0; l < layers; ++l) {
      const int64_t in = l > 0 ? widths[l - 1] : 0, out = widths[l];
      const T* w = weights[l] + net * in * out;
      if (l > 0 && needs.forward) Products::pack_weight(w, in, out, out, 1, weight[l]);
      if (l > 0 && needs.back) Products::pack_weight(w, out, in, 1, out, back[l]);
      if (needs.forward) pack_vector(biases[l] + net * out, out, bias[l]);
    }
  }

  void clear_gradients() {
    for (int64_t l = 0; l < layers; ++l) {
      if (l > 0) clear(weight_grad[l]);
      fill(bias_grad[l], round_up(widths[l], kPanel<T>), T(0));
    }
  }

  // The gradients of all but the first layer's weights.
  void unpack_gradients(T* const* weight_grads, T* const* bias_grads) const {
    for (int64_t l = 0; l < layers; ++l) {
      if (l > 0) unpack(weight_grad[l], widths[l - 1], weight_grads[l]);
      for (int64_t j = 0; j < widths[l]; ++j) bias_grads[l][j] = bias_grad[l][j];
    }
  }

  const Panels<T>& top() const { return hidden[layers - 1]; }

  // `groups` groups of `each` rows.
  void cut_evenly(int64_t groups, int64_t each, Tiles& into) {
    for (int64_t i = 0; i <= groups; ++i) first_row[i] = i * each;
    cut(first_row, groups, into);
  }

  // From hidden[0] to top().
  void forward() {
    const Panels<T> none{nullptr, 0, 0};
    for (int64_t l = 1; l < layers; ++l) {
      Products::convert(hidden[l - 1], tiles, Use::kProduct, factor);
      layer<Products, Layer::kRelu>(factor, tiles, weight[l], widths[l - 1], bias[l], none, 1, none, hidden[l]);
    }
  }

  // `up` holds the gradient of what goes into top()'s ReLU, and in the end that of what goes into hidden[0]'s.
  void backward() {
    const Panels<T> none{nullptr, 0, 0};
    for (int64_t l = layers - 1; l > 0; --l) {
      if (needs.parameter_grads) {
        Products::convert(hidden[l - 1], tiles, Use::kGradient, factor);
        accumulate<Products>(factor, up, tiles, weight_grad[l]);
        accumulate_columns(up, 0, tiles.rows, bias_grad[l], kPanel<T>);
      }
      Products::convert(up, tiles, Use::kProduct, factor);
      down.columns = widths[l - 1];
      layer<Products, Layer::kMask>(factor, tiles, back[l], widths[l], nullptr, none, 1, hidden[l - 1], down);
      const Panels<T> swap = up;
      up = down, down = swap;
    }
  }
};
