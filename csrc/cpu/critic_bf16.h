// The hidden layers' products of the critic step in bfloat16, included after critic_impl.h where AVX512-BF16 is there.
//
// Factors are rounded to bfloat16 (8 bits of precision, float32's range), two at a time are multiplied and added to
// float32 sums: twice the multiply-adds of float32. Activations, losses, gradients and parameters stay float32.
//
// The instruction takes the numbers in pairs along the sum: a 32-bit element holds both. The sums of x w and of g w^T
// run along a row, those of x^T g along the rows; so a factor is kept twice, as rows and as pairs of rows.
struct Bfloat16 {
  using Scalar = float;
  static constexpr int64_t kWidth = kPanel<float>;
  static_assert(kWidth == 32);

  struct Factor {
    uint16_t* by_row;   // panels as Panels': kWidth numbers of each row
    uint32_t* by_pair;  // panels of row pairs: kWidth times (number of the even row, number of the odd row)
    int64_t pairs;      // between one panel and the next
    int64_t columns;
    const uint16_t* row(int64_t panel, int64_t r) const { return by_row + (panel * 2 * pairs + r) * kWidth; }
    const uint32_t* pair(int64_t panel, int64_t k) const { return by_pair + (panel * pairs + k) * kWidth; }
    int64_t panels() const { return (columns + kWidth - 1) / kWidth; }
  };

  struct Weight {
    uint32_t* data;  // panels of outputs, a row for each pair of inputs; an odd last input is paired with zeros
    int64_t pairs;
    const uint32_t* panel(int64_t p) const { return data + p * pairs * kWidth; }
  };

  static Factor factor(Arena<float>& arena, int64_t rows, int64_t columns) {
    const int64_t pairs = (rows + 1) / 2, scalars = panel_scalars<float>(pairs, columns);
    // A row holds kWidth 16-bit numbers, two rows as many bytes as a row of pairs.
    return {reinterpret_cast<uint16_t*>(arena.take(scalars)), reinterpret_cast<uint32_t*>(arena.take(scalars)), pairs,
            columns};
  }

  static Weight weight(Arena<float>& arena, int64_t inputs, int64_t outputs) {
    const int64_t pairs = (inputs + 1) / 2;
    return {reinterpret_cast<uint32_t*>(arena.take(panel_scalars<float>(pairs, outputs))), pairs};
  }

  // Two vectors' 32 numbers, rounded to nearest, ties to even.
  static inline __m512i rounded(const float* row) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row)));
  }

  static inline void store_pairs(__m512i even, __m512i odd, uint32_t* to) {
    const __m512i low = _mm512_maskz_mov_epi16(0x55555555u, _mm512_set1_epi16(-1));
    // Elements 2 i and 2 i + 1 of the low half come from element i of `even` and of `odd`.
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i first = _mm512_or_si512(_mm512_and_si512(low, lane),
                                          _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(32)), 16));
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, first, odd));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(even, second, odd));
  }

  static void convert(const Panels<float>& from, const Tiles& tiles, int use, Factor& to) {
    to.columns = from.columns;
    for (int64_t p = 0; p < to.panels(); ++p) {
      const float* in = from.panel(p);
      uint16_t* row = to.by_row + p * 2 * to.pairs * kWidth;
      uint32_t* pair = to.by_pair + p * to.pairs * kWidth;
      for (int64_t r = 0; r < tiles.rows; r += 2, in += 2 * kWidth, row += 2 * kWidth, pair += kWidth) {
        const __m512i even = rounded(in), odd = r + 1 < tiles.rows ? rounded(in + kWidth) : _mm512_setzero_si512();
        if (use & kProduct) {
          _mm512_storeu_si512(row, even);
          _mm512_storeu_si512(row + kWidth, odd);
        }
        if (use & kGradient) store_pairs(even, odd, pair);
      }
    }
  }

  static void pack_weight(const float* source, int64_t inputs, int64_t outputs, int64_t row_step, int64_t column_step,
                          const Weight& to) {
    float block[2 * kWidth];
    for (int64_t first = 0; first < outputs; first += kWidth) {
      uint32_t* out = to.data + first / kWidth * to.pairs * kWidth;
      const int64_t width = smaller(outputs - first, kWidth);
      for (int64_t k = 0; k < to.pairs; ++k, out += kWidth) {
        for (int64_t half = 0; half < 2; ++half) {
          const bool there = 2 * k + half < inputs;
          const float* in = source + (2 * k + half) * row_step + first * column_step;
          float* row = block + half * kWidth;
          for (int64_t c = 0; c < kWidth; ++c) row[c] = there && c < width ? in[c * column_step] : 0.0f;
        }
        store_pairs(rounded(block), rounded(block + kWidth), out);
      }
    }
  }

  static inline __m512bh pairs_at(const void* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
  static inline __m512bh repeated(const void* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }
  static inline void add_product(Vector<float>& sum, __m512bh a, __m512bh b) {
    sum = reinterpret_cast<Vector<float>>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), a, b));
  }

  // acc[i] += x(row + i, 0 .. depth) times the rows of one weight panel.
  template <int Rows>
  static inline __attribute__((always_inline)) void multiply(const Factor& x, int64_t, int64_t row,
                                                             const uint32_t* weight, int64_t depth,
                                                             Vector<float> (&acc)[Rows][2]) {
    for (int64_t first = 0; first < depth; first += kWidth) {
      const uint16_t* in = x.row(first / kWidth, row);
      const int64_t width = smaller(depth - first, kWidth);
      for (int64_t c = 0; c < width; c += 2, weight += kWidth) {
        const __m512bh w0 = pairs_at(weight), w1 = pairs_at(weight + 16);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
          const __m512bh factor = repeated(in + i * kWidth + c);
          add_product(acc[i][0], factor, w0);
          add_product(acc[i][1], factor, w1);
        }
      }
    }
  }

  // grad (panels of outputs, one row per input) += x^T g.
  static void accumulate(const Factor& x, const Factor& g, const Tiles& tiles, const Panels<float>& grad) {
    const int64_t pairs = (tiles.rows + 1) / 2;
    for (int64_t first = 0; first < x.columns; first += kFeatures) {
      for (int64_t p = 0; p < g.panels(); ++p) {
        float* sum = grad.panel(p) + first * kWidth;
        Vector<float> acc[kFeatures][2];
#pragma GCC unroll 16
        for (int i = 0; i < kFeatures; ++i) {
          acc[i][0] = load(sum + i * kWidth), acc[i][1] = load(sum + i * kWidth + 16);
        }
        const uint32_t* a = x.pair(first / kWidth, 0) + first % kWidth;
        const uint32_t* b = g.pair(p, 0);
        for (int64_t k = 0; k < pairs; ++k, a += kWidth, b += kWidth) {
          const __m512bh g0 = pairs_at(b), g1 = pairs_at(b + 16);
#pragma GCC unroll 16
          for (int i = 0; i < kFeatures; ++i) {
            const __m512bh factor = repeated(a + i);
            add_product(acc[i][0], factor, g0);
            add_product(acc[i][1], factor, g1);
          }
        }
#pragma GCC unroll 16
        for (int i = 0; i < kFeatures; ++i) {
          store(sum + i * kWidth, acc[i][0]), store(sum + i * kWidth + 16, acc[i][1]);
        }
      }
    }
  }
};
