// The forward pass: each block runs its rows through all steps.
#include "attention.h"
#include "products.h"

struct ForwardArgs {
  const int* sizes;         // See Place.
  const V4* weights;        // [WARPS, STREAM + RING, 32]
  const float* vectors;     // [VECTORS]
  const u16* kv;            // [T, B, INPUT_ROWS, 2, F]
  const float* gate_terms;  // [T, B, 2F] or [T, B, 2], with all biases
  const float* first;       // [B, S, F]
  const float* fresh;       // [B, S, F], if there are flags
  const u8* flags;          // [T, B]
  float* memories;          // [T, B, S, F], after each step
  u16 *before, *squashed;   // [T, B, S, F]: memories before steps, and their tanh
  u16* layers;              // [LAYERS, T, B, S, F]: inputs of the MLP's layers
  V4* records;              // [T, blocks, RECORD, THREADS]
  float* statistics;        // [T, STATISTICS, blocks, ROWS]
};

struct ForwardShared {
  Weights weights;
  u16 X[BUFFERS][ROWS * STRIDE];
  u16 G[BUFFERS][GATES == UNIT_GATES ? ROWS * STRIDE : 8];
  float memory[4 * MT * NT * LOCAL_THREADS];
  Sums sums[BUFFERS], gate_sums;
  float mean[ROWS], rstd[ROWS], gate[2][ROWS];
  float vectors[VECTORS];
  float scores[SHARED_SCORES];
  Barrier barriers[2];
};
static_assert(sizeof(ForwardShared) <= FORWARD_SHARED, "as layout.py has it");

struct ForwardPass {
  const ForwardArgs& p;
  ForwardShared& sh;
  Thread me;
  Place at;
  Exchange exchange;
  int t;
  DEV ForwardPass(const ForwardArgs& args, ForwardShared& shared)
      : p(args), sh(shared), me(), at(args.sizes), exchange(sh.barriers), t(0) {}

  DEV float& memory(int a, int n, int h, int q) {
    return sh.memory[((a * NT + n) * 4 + 2 * h + q) * LOCAL_THREADS + local_index()];
  }
  // In a cluster the buffers of operands take turns, those of G by steps.
  DEV u16* operand(int i) { return sh.X[i % BUFFERS]; }
  DEV u16* gate_operand() { return sh.G[CLUSTER > 1 ? t % 2 : 0]; }
  DEV Sums& sums() { return sh.sums[exchange.buffer()]; }
  DEV float vector(int from, int a, int h) const { return sh.vectors[from + me.feature(a, h)]; }
  DEV void begin(Wide& y, int bias) {
    begin_sums(y, [&](int a, int h) { return vector(bias, a, h); });
  }

  // The input's terms of the step.
  DEV void prefetch_terms() const {
    const int count = (at.rows + S - 1) / S;
    auto step = [&](int i) { return (size_t)at.step(at.first / S + i, t); };
    prefetch_all(count, INPUT_ROWS * 4 * F, [&](int i) { return p.kv + step(i) * INPUT_ROWS * 2 * F; });
    if (GATES == UNIT_GATES)
      prefetch_all(count, 8 * F, [&](int i) { return p.gate_terms + step(i) * 2 * F; });
  }

  // The memory before the step: as operands, and as input of gates per slot.
  DEV void publish() {
    const u32 resets = FLAGS ? at.flagged(p.flags, me, t, RESET) : 0;
    Low x, y;
    float seen[2][COLUMNS];
    clear(seen[0]), clear(seen[1]);
    each_pair([&](int a, int n, int h) {
#pragma unroll
      for (int q = 0; q < 2; q++)
        if (resets >> (2 * n + q) & 1 && at.has(me.row(n, q)))
          memory(a, n, h, q) = p.fresh[(size_t)(at.first + me.row(n, q)) * F + me.feature(a, h)];
      const float m0 = memory(a, n, h, 0), m1 = memory(a, n, h, 1);
      x[a][n][h] = pack(m0, m1);
      if (GATES != NO_GATES) y[a][n][h] = pack(tanh_(m0), tanh_(m1));
      if (GATES == SLOT_GATES)
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
          for (int q = 0; q < 2; q++)
            seen[k][2 * n + q] += half_of(y[a][n][h], q) * vector(SLOT + k * F, a, h);
    });
    exchange.begin();
    put(me, exchange, operand(0), x);
    if (GATES == UNIT_GATES) put(me, exchange, gate_operand(), y);
    if (GATES == SLOT_GATES)
      sh.gate_sums.put(me, exchange, 0, seen[0]), sh.gate_sums.put(me, exchange, 1, seen[1]);
  }
  // After a barrier: operands for weight gradients, gates per slot.
  DEV void keep_operands() {
    if (SAVE) {
      copy_out(at, operand(0), p.before, F, t);
      if (GATES == UNIT_GATES) copy_out(at, gate_operand(), p.squashed, F, t);
    }
    const int r = local_index();
    if (GATES == SLOT_GATES && r < ROWS) {
      const float* term = p.gate_terms + (size_t)at.step(at.sequence(r), t) * 2;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const float gate = sigmoid(sh.gate_sums.total(k, r) + term[k]);
        sh.gate[k][r] = gate;
        if (SAVE && rank() == 0) *statistic(p.statistics, INPUT_GATE + k, r, t) = gate;
      }
    }
  }

  // Mean and reciprocal deviation of each row from the sums of all warps. The variance is
  // E[x^2] - E[x]^2: the cancellation is less than the rounding of x.
  DEV void statistics(float size, int mean_as, int rstd_as) {
    exchange.wait();
    const int r = local_index();
    if (r < ROWS) {
      const float mean = sums().total(0, r) / size;
      const float rstd = rsqrt_(fmaxf(sums().total(1, r) / size - mean * mean, 0.f) + 1e-5f);
      sh.mean[r] = mean, sh.rstd[r] = rstd;
      if (SAVE && rank() == 0) {
        if (mean_as >= 0) *statistic(p.statistics, mean_as, r, t) = mean;
        *statistic(p.statistics, rstd_as, r, t) = rstd;
      }
    }
    sync();
  }
  DEV float normal(float x, int n, int q) const {
    const int r = me.row(n, q);
    return (x - sh.mean[r]) * sh.rstd[r];
  }
  // LayerNorm, in place.
  DEV void normalise(Wide& x, int vectors, int kept, int rstd_as) {
    float sum[COLUMNS], squares[COLUMNS];
    clear(sum), clear(squares);
    each_number([&](int a, int n, int h, int q) {
      const float v = x[a][n][2 * h + q];
      sum[2 * n + q] += v, squares[2 * n + q] += v * v;
    });
    put_sums(me, exchange, sh.sums, sum, squares);
    statistics(F, -1, rstd_as);
    each_number([&](int a, int n, int h, int q) { x[a][n][2 * h + q] = normal(x[a][n][2 * h + q], n, q); });
    if (SAVE) {
      Low z;
      round_all(z, x);
      keep(record(p.records, t) + kept * THREADS, z);
    }
    each_number([&](int a, int n, int h, int q) {
      x[a][n][2 * h + q] = x[a][n][2 * h + q] * vector(vectors, a, h) + vector(vectors + F, a, h);
    });
  }

  // Queries, keys and values of the memory rows, normalised together.
  DEV void project(Low (&qkv)[3]) {
#pragma unroll
    for (int first = 0; first < 3; first += QKV_AT_ONCE) {
      Wide y[QKV_AT_ONCE];
      if (first == 0) wait_late(exchange);
#pragma unroll
      for (int k = 0; k < QKV_AT_ONCE; k++) begin(y[k], QKV_BIAS + (first + k) * F);
      auto& products = (float(&)[QKV_AT_ONCE * MT][NT][4])y;
      multiply<QKV_AT_ONCE * MT>(me, products, sh.weights, p.weights, first * MATRIX, operand(0), exchange, first == 0);
      if (first == 0) keep_operands();
#pragma unroll
      for (int kind = first; kind < first + QKV_AT_ONCE; kind++) {
        round_all(qkv[kind], y[kind - first]);
        if (SAVE) keep(record(p.records, t) + (KEPT_QKV + kind * TILE) * THREADS, qkv[kind]);
      }
    }
    float sum[COLUMNS], squares[COLUMNS];
    clear(sum), clear(squares);
#pragma unroll
    for (int kind = 0; kind < 3; kind++)
      each_number([&](int a, int n, int h, int q) {
        const float v = half_of(qkv[kind][a][n][h], q);
        sum[2 * n + q] += v, squares[2 * n + q] += v * v;
      });
    put_sums(me, exchange, sh.sums, sum, squares);
    statistics(3.f * F, QKV_MEAN, QKV_RSTD);
#pragma unroll
    for (int kind = 0; kind < 3; kind++)
      each_pair([&](int a, int n, int h) {
        const float scale = vector(QKV_SCALE + kind * F, a, h), shift = vector(QKV_SHIFT + kind * F, a, h);
        const u32 z = qkv[kind][a][n][h];
        qkv[kind][a][n][h] = pack(normal(low(z), n, 0) * scale + shift, normal(high(z), n, 1) * scale + shift);
      });
  }

  // x = memory + attended.
  DEV void attention(const Low (&qkv)[3], Wide& x) {
    each_number([&](int a, int n, int h, int q) { x[a][n][2 * h + q] = memory(a, n, h, q); });
    attend_all(me, at, p.kv, t, sh.scores, qkv, x);
  }

  // x = MLP(x) + x, with the second x rounded.
  DEV void feed_forward(Wide& x) {
    Low rows;
    round_all(rows, x);
    exchange.begin();
    put(me, exchange, operand(0), rows);
#pragma unroll
    for (int layer = 0; layer < LAYERS; layer++) {
      wait_late(exchange);
      begin(x, MLP_BIAS + layer * F);
      multiply<MT>(me, x, sh.weights, p.weights, (3 + layer) * MATRIX, operand(layer), exchange, true);
      if (SAVE) {
        copy_out(at, operand(layer), p.layers + (size_t)layer * at.sequences * at.steps * S * F, F, t);
      }
      if (layer == LAYERS - 1) break;
      Low hidden;
      u32 signs[SIGN_WORDS] = {};
      each_number([&](int a, int n, int h, int q) {
        float& v = x[a][n][2 * h + q];
        const int bit = (a * NT + n) * 4 + 2 * h + q;
        v = fmaxf(v, 0.f);
        if (v > 0.f) signs[bit / 32] |= 1u << bit % 32;
      });
      round_all(hidden, x);
      if (SAVE) keep<SIGN_WORDS>(record(p.records, t) + (KEPT_SIGNS + layer * SIGNS) * THREADS, signs);
      if (CLUSTER == 1) sync();
      exchange.begin();
      put(me, exchange, operand(layer + 1), hidden);
    }
    each_number([&](int a, int n, int h, int q) { x[a][n][2 * h + q] += half_of(rows[a][n][h], q); });
  }

  // The next memory from the candidate in x.
  DEV void update(Wide& x) {
    const u32 skips = FLAGS ? at.flagged(p.flags, me, t, SKIP) : 0;
    Low candidate;  // Rounded: registers are scarce beside the gates' products.
    if (GATES != NO_GATES)
      each_number([&](int a, int n, int h, int q) { x[a][n][2 * h + q] = tanh_(x[a][n][2 * h + q]); });
    round_all(candidate, x);
#pragma unroll
    for (int a = 0; a < MT; a++) {
      float z[2][NT][4];
      if (GATES == UNIT_GATES) unit_gates(z, a);
#pragma unroll
      for (int n = 0; n < NT; n++) {
        if (!has_tile(n)) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int h = i >> 1, q = i & 1, r = me.row(n, q);
          float& m = memory(a, n, h, q);
          const float c = GATES == UNIT_GATES ? half_of(candidate[a][n][h], q) : x[a][n][i];
          if (skips >> (2 * n + q) & 1) continue;
          if (GATES == NO_GATES) m = c;
          if (GATES == SLOT_GATES) m = sh.gate[0][r] * c + sh.gate[1][r] * m;
          if (GATES == UNIT_GATES) m = sigmoid(z[0][n][i]) * c + sigmoid(z[1][n][i]) * m;
        }
      }
    }
    each_number([&](int a, int n, int h, int q) {
      if (at.has(me.row(n, q))) p.memories[at.start(me, n, q, t) + me.feature(a, h)] = memory(a, n, h, q);
    });
  }
  // Both gates before their sigmoid, of the warp's tile a of features.
  DEV void unit_gates(float (&z)[2][NT][4], int a) {
    const int from = (3 + LAYERS) * MATRIX + 2 * a * SLICES;
#pragma unroll
    for (int n = 0; n < NT; n++) {
      if (!begins_tile(n)) continue;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float* term = p.gate_terms + (size_t)at.step(at.sequence(me, n, i & 1), t) * 2 * F;
#pragma unroll
        for (int k = 0; k < 2; k++) z[k][n][i] = term[k * F + me.feature(a, i >> 1)];
      }
    }
    multiply<2>(me, z, sh.weights, p.weights, from, gate_operand(), exchange, false);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      u32 rounded[NT][2];  // As in the backward pass.
#pragma unroll
      for (int n = 0; n < NT; n++) {
        if (!has_tile(n)) continue;
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const u32 pair = pack(z[k][n][2 * h], z[k][n][2 * h + 1]);
          rounded[n][h] = pair, z[k][n][2 * h] = low(pair), z[k][n][2 * h + 1] = high(pair);
        }
      }
      if (SAVE)
        keep<2 * NT>(record(p.records, t) + (KEPT_GATES + (2 * a + k) * GATE_TILE) * THREADS, &rounded[0][0]);
    }
  }

  DEV void run() {
    each_number_in_turn([&](int a, int n, int h, int q) {
      const int r = me.row(n, q);
      memory(a, n, h, q) = at.has(r) ? p.first[(size_t)(at.first + r) * F + me.feature(a, h)] : 0.f;
    });
    for (int i = local_index(); i < VECTORS; i += LOCAL_THREADS) sh.vectors[i] = p.vectors[i];
    sh.weights.begin(me, p.weights);
    sync();
#pragma unroll 1
    for (t = 0; t < at.steps; t++) {
      at = Place(p.sizes);
      Low qkv[3];
      Wide x;
      prefetch_terms();
      at = Place(p.sizes);
      publish();
      project(qkv);
      attention(qkv, x);
      normalise(x, NORM1, KEPT_NORM1, NORM1_RSTD);
      feed_forward(x);
      normalise(x, NORM2, KEPT_NORM2, NORM2_RSTD);
      update(x);
      sync();
    }
    sh.weights.end();
    exchange.end();
  }
};

#ifndef EMULATED
extern "C" __global__ void IN_CLUSTER __launch_bounds__(LOCAL_THREADS, 1)
    rrnn_forward(const int* sizes, const V4* weights, const float* vectors, const u16* kv,
                 const float* gate_terms, const float* first, const float* fresh, const u8* flags,
                 float* memories, u16* before, u16* squashed, u16* layers, V4* records,
                 float* statistics) {
  extern __shared__ __align__(128) char raw[];
  const ForwardArgs args{sizes, weights,  vectors, kv,       gate_terms, first,   fresh,
                         flags, memories, before,  squashed, layers,     records, statistics};
  ForwardPass(args, *(ForwardShared*)raw).run();
}
#endif
