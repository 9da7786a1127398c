// The backward pass: the same blocks, from the last step to the first. It writes the cotangents of
// all products, from which each weight gradient is one product over all steps, and sums the
// gradients of the vectors itself.
#include "attention.h"
#include "products.h"

struct BackwardArgs {
  const int* sizes;
  const V4* weights;  // As in the forward pass, but each matrix transposed, in another order.
  const float* vectors;
  const u16* kv;
  const float *first, *fresh;
  const u8* flags;
  const float* memories;
  const V4* records;
  const float* statistics;
  const float *d_memories, *d_final;  // [T, B, S, F], [B, S, F]
  float *d_first, *d_fresh;           // [B, S, F]
  u16 *d_qkv, *d_layers, *d_gates;    // [T, B, S, 3F], [LAYERS, T, B, S, F], [T, B, S, 2F]
  float* d_gate_terms;                // [T, B, 2F] or [T, B, 2]
  u16* d_kv;                          // [T, B, INPUT_ROWS, 2, F]
  float* d_vectors;                   // [blocks, VECTORS]
};

constexpr int OPERANDS = CLUSTER > 1 ? 3 : 1;
struct BackwardShared {
  Weights weights;
  u16 X[OPERANDS][ROWS * STRIDE];
  float d_memory[4 * MT * NT * LOCAL_THREADS];
  Sums sums[BUFFERS];
  float mean[ROWS], projection[ROWS], gate[2][ROWS], statistics[STATISTICS][ROWS];
  float d_vectors[VECTORS];
  float scores[2 * SHARED_SCORES];
  Barrier barriers[2];
};
static_assert(sizeof(BackwardShared) <= BACKWARD_SHARED, "as layout.py has it");

struct BackwardPass {
  const BackwardArgs& p;
  BackwardShared& sh;
  Thread me;
  Place at;
  Exchange exchange;
  int t;
  u32 resets, skips;
  DEV BackwardPass(const BackwardArgs& args, BackwardShared& shared)
      : p(args), sh(shared), me(), at(args.sizes), exchange(sh.barriers), t(0), resets(0), skips(0) {}

  DEV float& d_memory(int a, int n, int h, int q) {
    return sh.d_memory[((a * NT + n) * 4 + 2 * h + q) * LOCAL_THREADS + local_index()];
  }
  DEV Sums& sums() { return sh.sums[exchange.buffer()]; }
  DEV float vector(int from, int a, int h) const { return p.vectors[from + me.feature(a, h)]; }
  // Adds a thread's contribution of a feature to the gradient of a vector; no other thread adds to it.
  DEV void add(int to, int a, int h, float x) {
    x += shuffle_xor(x, 1), x += shuffle_xor(x, 2);
    if (me.t == 0) sh.d_vectors[to + me.feature(a, h)] += x;
  }
  DEV void add_rows(int to, const Wide& x) {
#pragma unroll
    for (int a = 0; a < MT; a++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < NT; n++)
          if (has_tile(n)) sum += x[a][n][2 * h] + x[a][n][2 * h + 1];
        add(to, a, h, sum);
      }
  }
  // The memory before the step.
  DEV float before(int a, int n, int h, int q) const {
    const int r = me.row(n, q), f = me.feature(a, h);
    const size_t row = at.first + r;
    if (!at.has(r)) return 0.f;
    if (resets >> (2 * n + q) & 1) return p.fresh[row * F + f];
    return t > 0 ? p.memories[at.start(me, n, q, t - 1) + f] : p.first[row * F + f];
  }
  DEV void means(float size) {
    exchange.wait();
    const int r = local_index();
    if (r < ROWS) sh.mean[r] = sums().total(0, r) / size, sh.projection[r] = sums().total(1, r) / size;
    sync();
  }
  DEV float norm_backward(float d, float normal, int n, int q, int rstd) const {
    const int r = me.row(n, q);
    return sh.statistics[rstd][r] * (d - sh.mean[r] - normal * sh.projection[r]);
  }
  // LayerNorm over F features: converts y, the cotangent of its output, to that of its input.
  DEV void norm_backward(Wide& y, const Low& normal, int vectors, int rstd) {
    float sum[COLUMNS], projection[COLUMNS];
    clear(sum), clear(projection);
#pragma unroll
    for (int a = 0; a < MT; a++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float scale = vector(vectors, a, h);
        float d_scale = 0.f, d_shift = 0.f;
#pragma unroll
        for (int n = 0; n < NT; n++) {
          if (!has_tile(n)) continue;
#pragma unroll
          for (int q = 0; q < 2; q++) {
            float& d = y[a][n][2 * h + q];
            const float x = half_of(normal[a][n][h], q);
            d_scale += d * x, d_shift += d;
            d *= scale;
            sum[2 * n + q] += d, projection[2 * n + q] += d * x;
          }
        }
        add(vectors, a, h, d_scale), add(vectors + F, a, h, d_shift);
      }
    put_sums(me, exchange, sh.sums, sum, projection);
    means(F);
    each_number([&](int a, int n, int h, int q) {
      float& d = y[a][n][2 * h + q];
      d = norm_backward(d, half_of(normal[a][n][h], q), n, q, rstd);
    });
  }
  // Each of N arrays as an operand X and into an array of all steps; then y += X W^T. In a cluster
  // they are put at once, into other buffers than those of the products before.
  template <int N> DEV void products(Wide& y, const Low (&x)[N], int product, u16* to, int buffer) {
    constexpr int AT_ONCE = CLUSTER > 1 ? N : 1;
#pragma unroll
    for (int k = 0; k < N; k++) {
      auto X = [&](int j) { return sh.X[(buffer + j) % OPERANDS]; };
      const bool first = k % AT_ONCE == 0;
      if (first) {
        if (CLUSTER == 1) sync();
        exchange.begin();
#pragma unroll
        for (int j = k; j < k + AT_ONCE; j++) put(me, exchange, X(j), x[j]);
        wait_late(exchange);
      }
      multiply<MT>(me, y, sh.weights, p.weights, (product + k) * MATRIX, X(k), exchange, first);
      copy_out(at, X(k), to + k * F, N * F, t);
    }
  }

  // Through gates and candidate: the cotangent y of the norm's result, and those of both gates, per
  // unit in d_gate, per slot in shared memory. The cotangent around the candidate stays in d_memory.
  DEV void update_backward(Wide& y, const Low& normal, Low (&d_gate)[2]) {
    float d_slot[2][COLUMNS];
    clear(d_slot[0]), clear(d_slot[1]);
#pragma unroll
    for (int a = 0; a < MT; a++) {
      u32 z[2][NT][2];
      float of_group[2][2];
      if (GATES == UNIT_GATES)
#pragma unroll
        for (int k = 0; k < 2; k++)
          fetch<2 * NT>(&z[k][0][0], record(p.records, t) + (KEPT_GATES + (2 * a + k) * GATE_TILE) * THREADS);
#pragma unroll
      for (int n = 0; n < NT; n++) {
        if (!has_tile(n)) continue;
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float scale = vector(NORM2, a, h), shift = vector(NORM2 + F, a, h);
          float d_gates[2][2];
#pragma unroll
          for (int q = 0; q < 2; q++) {
            const int r = me.row(n, q), f = me.feature(a, h);
            float d = d_memory(a, n, h, q) + (at.has(r) ? p.d_memories[at.start(me, n, q, t) + f] : 0.f), past = 0.f;
            if (skips >> (2 * n + q) & 1) past = d, d = 0.f;
            const float x = half_of(normal[a][n][h], q) * scale + shift;
            if (GATES == NO_GATES) {
              y[a][n][2 * h + q] = d, d_memory(a, n, h, q) = past;
              continue;
            }
            const bool unit = GATES == UNIT_GATES;
            const float candidate = tanh_(x), m = before(a, n, h, q);
            const float in = unit ? sigmoid(half_of(z[0][n][h], q)) : sh.statistics[INPUT_GATE][r];
            const float forget = unit ? sigmoid(half_of(z[1][n][h], q)) : sh.statistics[FORGET_GATE][r];
            d_gates[0][q] = d * candidate * in * (1.f - in), d_gates[1][q] = d * m * forget * (1.f - forget);
            if (!unit) d_slot[0][2 * n + q] += d_gates[0][q], d_slot[1][2 * n + q] += d_gates[1][q];
            y[a][n][2 * h + q] = d * in * (1.f - candidate * candidate);
            d_memory(a, n, h, q) = d * forget + past;
          }
          if (GATES == UNIT_GATES)
#pragma unroll
            for (int k = 0; k < 2; k++) {
              d_gate[k][a][n][h] = pack(d_gates[k][0], d_gates[k][1]);
              sum_of_slots(of_group[k][h], d_gates[k], k, a, n, h);
            }
        }
      }
    }
    if (GATES == SLOT_GATES) slot_gates(d_slot);
  }
  // The cotangent of a gate's term, which all slots of a sequence share; `sum` is that of its tiles before.
  DEV void sum_of_slots(float& sum, const float (&d)[2], int k, int a, int n, int h) const {
    auto write = [&](int q, float x) {
      if (at.has(me.row(n, q)))
        p.d_gate_terms[((size_t)at.step(at.sequence(me, n, q), t) * 2 + k) * F + me.feature(a, h)] = x;
    };
    if (S == 1) return write(0, d[0]), write(1, d[1]);
    float x = d[0] + d[1];
#pragma unroll
    for (int other = 1; other < 4 && 2 * other < S; other *= 2) x += shuffle_xor(x, other);
    sum = n % OWN ? sum + x : x;
    if (n % OWN == OWN - 1 && 2 * me.t % (S < 8 ? S : 8) == 0) write(0, sum);
  }
  DEV void slot_gates(float (&d)[2][COLUMNS]) {
    put_sums(me, exchange, sh.sums, d[0], d[1]);
    exchange.wait();
    const int r = local_index();
#pragma unroll
    for (int k = 0; k < 2; k++) {
      float x = 0.f;
      if (r < ROWS) x = sh.gate[k][r] = sums().total(k, r);
#pragma unroll
      for (int other = 1; other < S; other *= 2) x += shuffle_xor(x, other);
      if (r % S == 0 && at.has(r) && rank() == 0) p.d_gate_terms[(size_t)at.step(at.sequence(r), t) * 2 + k] = x;
    }
    sync();
  }
  // From the gates to the previous memory, through its tanh.
  DEV void gates_backward(const Low (&d_gate)[2]) {
    Wide y;
    if (GATES == UNIT_GATES) {
      clear(y);
      products<2>(y, d_gate, 0, p.d_gates, 0);
    }
#pragma unroll
    for (int a = 0; a < MT; a++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float d_in = 0.f, d_forget = 0.f;
#pragma unroll
        for (int n = 0; n < NT; n++) {
          if (!has_tile(n)) continue;
#pragma unroll
          for (int q = 0; q < 2; q++) {
            const int r = me.row(n, q);
            const float s = tanh_(before(a, n, h, q));
            float d = y[a][n][2 * h + q];
            if (GATES == SLOT_GATES) {
              d = sh.gate[0][r] * vector(SLOT, a, h) + sh.gate[1][r] * vector(SLOT + F, a, h);
              d_in += sh.gate[0][r] * s, d_forget += sh.gate[1][r] * s;
            }
            d_memory(a, n, h, q) += d * (1.f - s * s);
          }
        }
        if (GATES == SLOT_GATES) add(SLOT, a, h, d_in), add(SLOT + F, a, h, d_forget);
      }
  }
  // Converts y, the cotangent of the MLP's result, to that of its input, including the residual.
  DEV void feed_forward_backward(Wide& y) {
    Low last;
    add_rows(MLP_BIAS + (LAYERS - 1) * F, y);
    round_all(last, y);
    const size_t size = (size_t)at.sequences * at.steps * S * F;
#pragma unroll
    for (int layer = LAYERS - 1; layer >= 0; layer--) {
      Low d[1];
      if (layer == LAYERS - 1) {
        each_pair([&](int a, int n, int h) { d[0][a][n][h] = last[a][n][h]; });
      } else {
        u32 signs[SIGN_WORDS];
        fetch<SIGN_WORDS>(signs, record(p.records, t) + (KEPT_SIGNS + layer * SIGNS) * THREADS);
        each_number([&](int a, int n, int h, int q) {
          const int bit = (a * NT + n) * 4 + 2 * h + q;
          if (!(signs[bit / 32] >> bit % 32 & 1)) y[a][n][2 * h + q] = 0.f;
        });
        add_rows(MLP_BIAS + layer * F, y);
        round_all(d[0], y);
      }
      clear(y);
      products<1>(y, d, MATRICES - 4 - layer, p.d_layers + layer * size, LAYERS + 1 - layer);
    }
    each_number([&](int a, int n, int h, int q) { y[a][n][2 * h + q] += half_of(last[a][n][h], q); });
  }

  // The normalised product of queries, keys and values.
  DEV float normal_qkv(u32 z, int n, int q) const {
    const int r = me.row(n, q);
    return (half_of(z, q) - sh.statistics[QKV_MEAN][r]) * sh.statistics[QKV_RSTD][r];
  }
  DEV const V4* kept_qkv(int kind) const { return record(p.records, t) + (KEPT_QKV + kind * TILE) * THREADS; }
  // From the cotangents d of the attention's output to those of queries, keys and values, in qkv.
  DEV void attention_backward(Low (&qkv)[3], const Low& d) {
#pragma unroll
    for (int kind = 0; kind < 3; kind++) {
      fetch(qkv[kind], kept_qkv(kind));
      each_pair([&](int a, int n, int h) {
        const float scale = vector(QKV_SCALE + kind * F, a, h), shift = vector(QKV_SHIFT + kind * F, a, h);
        const u32 z = qkv[kind][a][n][h];
        qkv[kind][a][n][h] = pack(normal_qkv(z, n, 0) * scale + shift, normal_qkv(z, n, 1) * scale + shift);
      });
    }
    attend_all_backward(me, at, p.kv, t, sh.scores, qkv, d, p.d_kv);
  }
  // The norm of queries, keys and values: converts the cotangents of its output in qkv to those of
  // the products.
  DEV void qkv_norm_backward(Low (&qkv)[3]) {
    float sum[COLUMNS], projection[COLUMNS];
    clear(sum), clear(projection);
#pragma unroll
    for (int pass = 0; pass < 2; pass++) {
#pragma unroll
      for (int kind = 0; kind < 3; kind++) {
        Low z;
        fetch(z, kept_qkv(kind));
#pragma unroll
        for (int a = 0; a < MT; a++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const float scale = vector(QKV_SCALE + kind * F, a, h);
            float d_scale = 0.f, d_shift = 0.f, d_bias = 0.f;
#pragma unroll
            for (int n = 0; n < NT; n++) {
              if (!has_tile(n)) continue;
              float d[2];
#pragma unroll
              for (int q = 0; q < 2; q++) {
                const float x = normal_qkv(z[a][n][h], n, q);
                d[q] = half_of(qkv[kind][a][n][h], q);
                d_scale += d[q] * x, d_shift += d[q];
                d[q] *= scale;
                if (pass == 0) sum[2 * n + q] += d[q], projection[2 * n + q] += d[q] * x;
                else d[q] = norm_backward(d[q], x, n, q, QKV_RSTD), d_bias += d[q];
              }
              if (pass == 1) qkv[kind][a][n][h] = pack(d[0], d[1]);
            }
            if (pass == 0) add(QKV_SCALE + kind * F, a, h, d_scale), add(QKV_SHIFT + kind * F, a, h, d_shift);
            else add(QKV_BIAS + kind * F, a, h, d_bias);
          }
      }
      if (pass == 0) {
        put_sums(me, exchange, sh.sums, sum, projection);
        means(3.f * F);
      }
    }
  }

  // What this step reads after its MLP, and what the next one reads before.
  DEV void prefetch_second_half() const {
    prefetch_pieces(t, 0, KEPT_NORM2);
    prefetch_all((at.rows + S - 1) / S, INPUT_ROWS * 4 * F, [&](int i) {
      return p.kv + (size_t)at.step(at.first / S + i, t) * INPUT_ROWS * 2 * F;
    });
  }
  DEV void prefetch_first_half() const {
    if (!PREFETCH || t == 0) return;
    prefetch_pieces(t - 1, KEPT_NORM2, RECORD);
    prefetch_all(STATISTICS, ROWS * 4, [&](int k) { return statistic(p.statistics, k, 0, t - 1); });
    prefetch_all(at.rows, F * 4, [&](int r) { return p.d_memories + (size_t)at.row(r, t - 1) * F; });
    if (GATES != NO_GATES)
      prefetch_all(at.rows, F * 4, [&](int r) {
        return t > 1 ? p.memories + (size_t)at.row(r, t - 2) * F : p.first + (size_t)(at.first + r) * F;
      });
  }
  // Fours of a record.
  DEV void prefetch_pieces(int of, int first, int last) const {
    const V4* from = record(p.records, of) + first * THREADS;
    prefetch_all(last - first, THREADS * 16, [&](int i) { return from + i * THREADS; });
  }

  DEV void begin_step() {
    if (FLAGS) resets = at.flagged(p.flags, me, t, RESET), skips = at.flagged(p.flags, me, t, SKIP);
    const int r = local_index();
    if (r < ROWS)
#pragma unroll
      for (int k = 0; k < STATISTICS; k++) sh.statistics[k][r] = *statistic(p.statistics, k, r, t);
    sync();
  }
  // If the step started from the fresh memory, the cotangent belongs to it.
  DEV void end_step() {
    if (FLAGS)
      each_number_in_turn([&](int a, int n, int h, int q) {
        const int r = me.row(n, q);
        if (!(resets >> (2 * n + q) & 1) || !at.has(r)) return;
        p.d_fresh[(size_t)(at.first + r) * F + me.feature(a, h)] += d_memory(a, n, h, q);
        d_memory(a, n, h, q) = 0.f;
      });
    sync();
  }
  DEV void step() {
    at = Place(p.sizes);
    Wide y;
    Low normal, d_gate[2], qkv[3];
    begin_step();
    prefetch_second_half();
    fetch(normal, record(p.records, t) + KEPT_NORM2 * THREADS);
    update_backward(y, normal, d_gate);
    norm_backward(y, normal, NORM2, NORM2_RSTD);
    at = Place(p.sizes);
    if (GATES != NO_GATES) gates_backward(d_gate);
    at = Place(p.sizes);
    feed_forward_backward(y);
    prefetch_first_half();
    fetch(normal, record(p.records, t) + KEPT_NORM1 * THREADS);
    norm_backward(y, normal, NORM1, NORM1_RSTD);
    each_number([&](int a, int n, int h, int q) { d_memory(a, n, h, q) += y[a][n][2 * h + q]; });
    round_all(normal, y);
    at = Place(p.sizes);
    attention_backward(qkv, normal);
    at = Place(p.sizes);
    qkv_norm_backward(qkv);
    clear(y);
    products<3>(y, qkv, MATRICES - 3, p.d_qkv, 0);
    each_number([&](int a, int n, int h, int q) { d_memory(a, n, h, q) += y[a][n][2 * h + q]; });
    end_step();
  }

  DEV void run() {
    for (int i = local_index(); i < VECTORS; i += LOCAL_THREADS) sh.d_vectors[i] = 0.f;
    sh.weights.begin(me, p.weights);
    each_number_in_turn([&](int a, int n, int h, int q) {
      const int r = me.row(n, q);
      const size_t place = (size_t)(at.first + r) * F + me.feature(a, h);
      d_memory(a, n, h, q) = at.has(r) ? p.d_final[place] : 0.f;
      if (FLAGS && at.has(r)) p.d_fresh[place] = 0.f;
    });
    sync();
#pragma unroll 1
    for (t = at.steps - 1; t >= 0; t--) step();
    each_number_in_turn([&](int a, int n, int h, int q) {
      const int r = me.row(n, q);
      if (at.has(r)) p.d_first[(size_t)(at.first + r) * F + me.feature(a, h)] = d_memory(a, n, h, q);
    });
    for (int i = local_index(); i < VECTORS; i += LOCAL_THREADS)
      if (CLUSTER == 1 || i % F / (F / CLUSTER) == rank())  // Of its features.
        p.d_vectors[(size_t)block_index() * VECTORS + i] = sh.d_vectors[i];
    sh.weights.end();
    exchange.end();
  }
};

#ifndef EMULATED
extern "C" __global__ void IN_CLUSTER __launch_bounds__(LOCAL_THREADS, 1)
    rrnn_backward(const int* sizes, const V4* weights, const float* vectors, const u16* kv,
                  const float* first, const float* fresh, const u8* flags, const float* memories,
                  const V4* records, const float* statistics, const float* d_memories,
                  const float* d_final, float* d_first, float* d_fresh, u16* d_qkv, u16* d_layers,
                  u16* d_gates, float* d_gate_terms, u16* d_kv, float* d_vectors) {
  extern __shared__ __align__(128) char raw[];
  const BackwardArgs args{sizes,   weights,    vectors, kv,       first,   fresh,        flags,
                          memories, records,   statistics, d_memories, d_final, d_first, d_fresh,
                          d_qkv,   d_layers,   d_gates, d_gate_terms, d_kv, d_vectors};
  BackwardPass(args, *(BackwardShared*)raw).run();
}
#endif
