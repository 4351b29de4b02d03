// The hidden layers' products in bfloat16, included after layers_impl.h where AVX512-BF16 and AVX512-VBMI2 are there.
//
// Factors are rounded to bfloat16 (8 bits of precision, float32's range), two at a time are multiplied and added to
// float32 sums: twice the multiply-adds of float32. Activations, losses, gradients and parameters stay float32.
//
// The instruction takes the numbers in pairs along the sum: a 32-bit element holds both. In the products x w and g w^T
// the sum runs over the columns of x that count (Sparse tells which), and those are moved together, so that any two
// make a pair; the weights' rows that belong to them are interleaved as they are read. In x^T g it runs over the rows
// of a tile, and pairs are of one row and the next.
struct Bfloat16 {
  using Scalar = float;
  static constexpr int64_t kWidth = kPanel<float>;
  static_assert(kWidth == 32);

  struct Factor {
    // Each tile's columns that count, moved together: for a product the numbers of each row, `stride` from one row to
    // the next; for a gradient the elements (number of the even row, of the odd row) of each pair of rows, 2 * stride.
    uint16_t* data;
    uint32_t* in_use;   // of one tile: the columns of each panel that count, as bits
    uint32_t* weights;  // of tile t, from [t * stride] on: where a column's row is in a panel of weights or gradients
    int64_t* counts;
    int64_t stride;  // room for all columns and, as whole vectors are written, for one vector more

    // Where tile t starts, whose first row is `row`; a pair of rows takes as much as two rows.
    uint16_t* tile(int64_t t, int64_t row) const { return data + (row + t + 1) / 2 * 2 * stride; }
  };

  struct Weight {
    uint16_t* data;  // panels of outputs, a row for each input and one of zeros
    int64_t inputs;
    const uint16_t* panel(int64_t p) const { return data + p * (inputs + 1) * kWidth; }
  };

  static Factor factor(Arena<float>& arena, int64_t rows, int64_t width) {
    const int64_t stride = round_up(width, kWidth) + kWidth, tiles = most_tiles(rows);
    uint16_t* data = arena.take_as<uint16_t>((rows + tiles + 2) * stride);
    uint32_t* in_use = arena.take_as<uint32_t>(stride / kWidth);
    uint32_t* weights = arena.take_as<uint32_t>(tiles * stride);
    return {data, in_use, weights, arena.take_as<int64_t>(tiles), stride};
  }

  static Weight weight(Arena<float>& arena, int64_t inputs, int64_t outputs) {
    return {arena.take_as<uint16_t>((inputs + 1) * round_up(outputs, kWidth)), inputs};
  }

  // 32 numbers, rounded to nearest, ties to even.
  static inline __m512i rounded(const float* row) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row)));
  }

  // Elements (even[i], odd[i]) for i = 0 .. 15 and for i = 16 .. 31.
  static inline void pair(__m512i even, __m512i odd, __m512i& first, __m512i& second) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i order = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(32)), 16));
    first = _mm512_permutex2var_epi16(even, order, odd);
    second = _mm512_permutex2var_epi16(even, _mm512_add_epi16(order, _mm512_set1_epi16(16)), odd);
  }

  // vpunpck* pairs the lower, and the upper, four numbers of each 128 bits: so the 32 outputs of a weight's row lie in
  // such an order that all lower fours make the first 16 outputs and all upper ones the others.
  static inline __m512i ordered(__m512i row) {
    const __m512i fours = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    return _mm512_permutexvar_epi64(fours, row);
  }

  static void pack_weight(const float* source, int64_t inputs, int64_t outputs, int64_t row_step, int64_t column_step,
                          const Weight& to) {
    uint16_t* out = to.data;
    for (int64_t first = 0; first < outputs; first += kWidth) {
      const int64_t width = smaller(outputs - first, kWidth);
      float row[kWidth] = {};
      for (int64_t k = 0; k < inputs; ++k, out += kWidth) {
        const float* in = source + k * row_step + first * column_step;
        const bool whole = column_step == 1 && width == kWidth;
        for (int64_t c = 0; c < width && !whole; ++c) row[c] = in[c * column_step];
        _mm512_storeu_si512(out, ordered(rounded(whole ? in : row)));
      }
      _mm512_storeu_si512(out, _mm512_setzero_si512());
      out += kWidth;
    }
  }

  // Lists the columns of each tile, and moves together what its rows have there.
  static void convert(const Panels<float>& from, const Tiles& tiles, Use use, Factor& to) {
    const int64_t panels = from.panels();
    for (int64_t t = 0; t < tiles.count; ++t) {
      const Tile tile = tiles.at[t];
      uint32_t* weights = to.weights + t * to.stride;
      int64_t count = 0;
      for (int64_t p = 0; p < panels; ++p) {
        to.in_use[p] = columns_in_use(from, tile, p);
        for_set_bits(to.in_use[p], [&](const Numbers& numbers, int64_t set) {
          const Numbers weight = (numbers + static_cast<uint32_t>(p * kWidth)) * static_cast<uint32_t>(kWidth);
          __builtin_memcpy(weights + count, &weight, sizeof weight);
          count += set;
        });
      }
      weights[count] = static_cast<uint32_t>(from.columns * kWidth);  // the row of zeros: an odd last one's partner
      to.counts[t] = count;
      uint16_t* out = to.tile(t, tile.row);
      const float* in = from.data + tile.row * kWidth;
      if (use == Use::kProduct) {
        for (int64_t r = 0; r < tile.rows; ++r) {
          uint16_t* next = out + r * to.stride;
          for (int64_t p = 0; p < panels; ++p) {
            const uint32_t bits = to.in_use[p];
            _mm512_storeu_si512(next,
                                _mm512_maskz_compress_epi16(bits, rounded(in + p * from.rows * kWidth + r * kWidth)));
            next += __builtin_popcount(bits);
          }
          *next = 0;
        }
      } else {
        const int64_t pairs = (tile.rows + 1) / 2;
        for (int64_t k = 0; k < pairs; ++k) {
          uint32_t* next = reinterpret_cast<uint32_t*>(out + 2 * k * to.stride);
          for (int64_t p = 0; p < panels; ++p) {
            const float* row = in + p * from.rows * kWidth + 2 * k * kWidth;
            const __m512i odd = 2 * k + 1 < tile.rows ? rounded(row + kWidth) : _mm512_setzero_si512();
            __m512i first, second;
            pair(rounded(row), odd, first, second);
            const uint32_t bits = to.in_use[p], low = bits & 0xffff, high = bits >> 16;
            _mm512_storeu_si512(next, _mm512_maskz_compress_epi32(static_cast<__mmask16>(low), first));
            next += __builtin_popcount(low);
            _mm512_storeu_si512(next, _mm512_maskz_compress_epi32(static_cast<__mmask16>(high), second));
            next += __builtin_popcount(high);
          }
        }
      }
    }
  }

  static inline __m512bh repeated(const uint16_t* p) {
    int both;
    __builtin_memcpy(&both, p, sizeof both);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
  }
  static inline void add_product(Vector<float>& sum, __m512bh a, __m512bh b) {
    sum = reinterpret_cast<Vector<float>>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), a, b));
  }

  // acc[i] += x(row + i, all columns) times the rows of one weight panel.
  template <int Rows>
  static inline __attribute__((always_inline)) void multiply(const Factor& x, int64_t tile, int64_t row,
                                                             const uint16_t* weight, int64_t,
                                                             Vector<float> (&acc)[Rows][2]) {
    const uint32_t* weights = x.weights + tile * x.stride;
    const uint16_t* in = x.tile(tile, row);
    const int64_t count = x.counts[tile];
    for (int64_t k = 0; k < count; k += 2, in += 2) {
      const __m512i even = _mm512_loadu_si512(weight + weights[k]);
      const __m512i odd = _mm512_loadu_si512(weight + weights[k + 1]);
      const __m512bh w0 = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(even, odd));
      const __m512bh w1 = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const __m512bh factor = repeated(in + i * x.stride);
        add_product(acc[i][0], factor, w0);
        add_product(acc[i][1], factor, w1);
      }
    }
  }

  // One panel of grad += x^T g over one tile, whose rows of g stay in registers.
  template <int Rows>
  static void add_tile(const Factor& x, int64_t tile, int64_t row, const float* g, float* grad) {
    constexpr int kPairs = (Rows + 1) / 2;
    __m512i pairs[kPairs][2];
    g += row * kWidth;
#pragma GCC unroll 16
    for (int i = 0; i < kPairs; ++i, g += 2 * kWidth) {
      const __m512i odd = 2 * i + 1 < Rows ? rounded(g + kWidth) : _mm512_setzero_si512();
      pair(rounded(g), odd, pairs[i][0], pairs[i][1]);
    }
    const uint32_t* weights = x.weights + tile * x.stride;
    const uint16_t* in = x.tile(tile, row);
    const int64_t count = x.counts[tile];
    for (int64_t k = 0; k < count; ++k, in += 2) {
      float* sum = grad + weights[k];
      Vector<float> s0 = load(sum), s1 = load(sum + kLanes<float>);
#pragma GCC unroll 16
      for (int i = 0; i < kPairs; ++i) {
        const __m512bh factor = repeated(in + 2 * i * x.stride);
        add_product(s0, factor, reinterpret_cast<__m512bh>(pairs[i][0]));
        add_product(s1, factor, reinterpret_cast<__m512bh>(pairs[i][1]));
      }
      store(sum, s0), store(sum + kLanes<float>, s1);
    }
  }
};
