// Products of both passes: weights, operands in shared memory, and their product.
#pragma once
#include "core.h"

// Weights are read in the order of the tensor cores and of their use, each by one warp of the block: a
// stream of fragments, of 16 by 16 numbers, for each warp. They are copied to shared memory beforehand: in
// a cluster all of them, before the first step; else the next RING, over and over, also across
// products. A thread copies what it reads itself, so no barrier is needed.
constexpr int MATRICES = 3 + LAYERS + (GATES == UNIT_GATES ? 2 : 0);
constexpr int MATRIX = MT * SLICES, STREAM = MATRICES * MATRIX;  // In fragments of a warp.
struct Weights {
  static constexpr int SLOTS = CLUSTER > 1 ? STREAM : RING;
  V4 slots[LOCAL_WARPS * SLOTS * 32];
  DEV V4* slot(const Thread& me, int i) { return slots + (me.local_warp() * SLOTS + i) * 32 + me.lane; }
  // Fragment i of a step; after the last come the first of the next step.
  DEV static const V4* source(const Thread& me, const V4* weights, int i) {
    return weights + (size_t)again(me.warp * (STREAM + RING) + i) * 32 + me.lane;
  }
  DEV void begin(const Thread& me, const V4* weights) {
#pragma unroll 8
    for (int i = 0; i < SLOTS; i++) copy_async(slot(me, i), source(me, weights, i));
    if (CLUSTER > 1) wait_copies<0>();
  }
  DEV void end() { wait_copies<0>(); }
};

// An operand X [rows, F] in shared memory, where each row is padded. Groups of four warps read it in
// matrices of 8 rows by 8 features, 128 bytes, those of the same rows one after the other.
DEV int place_in_operand(int r, int f) {
  return WGMMA ? (r / 8 * F + f / 8 * 8 + r % 8) * 8 + f % 8 : r * STRIDE + f;
}

// y += W^T X^T for NA tiles of 16 features, with fragments from number `from` of the stream on, ordered
// by slices, then tiles. With `wait` other warps still have to write X. There are two possible barriers:
// `wait_late`, before all work of the caller, if registers are scarce; the other after the first
// weights are fetched.
constexpr int PAIRED = (EVEN || OWN > 1 ? NT : NT - 1) / 2 * 2;  // Tiles that are read two at a time.
DEV void wait_late(const Exchange& exchange) {
  if (!EARLY) exchange.wait();
}
// `multiply` by groups of four warps, which read X once for all four, and while they load the next weights.
template <int NA>
DEV void multiply_in_groups(const Thread& me, float (&y)[NA][NT][4], Weights& weights, const V4* stream, int from,
                            const u16* X, const Exchange& exchange, bool wait) {
  constexpr int ROUND = RING / NA;  // Slices in the ring, and of the loop's body.
  static_assert(SLICES % ROUND == 0 && ROUND % 2 == 0, "whole rounds of pairs of slices");
  static_assert(!WGMMA || (CLUSTER == 1 && WARPS % 4 == 0 && NT <= 7), "groups of four warps of a block");
  u32 A[2][NA][4];
  auto load = [&](int i) {
    wait_copies<RING - NA>();
#pragma unroll
    for (int a = 0; a < NA; a++) {
      const V4 v = load_weights(weights.slot(me, i % ROUND * NA + a));
      u32(&to)[4] = A[i % 2][a];
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
  };
  load(0);
  if (wait && EARLY) exchange.wait();
  const V4* next = Weights::source(me, stream, from + RING);
  const u64 matrices = in_shared(X, 128, F * 16);
#pragma unroll
  for (int a = 0; a < NA; a++) settle(y[a]);
#pragma unroll 1
  for (int k0 = 0; k0 < SLICES; k0 += ROUND) {
#pragma unroll
    for (int i = 0; i < ROUND; i++) {
      const int k = k0 + i;
      begin_group();
#pragma unroll
      for (int a = 0; a < NA; a++) group_mma(y[a], A[i % 2][a], matrices + k * 16);  // 256 bytes.
      end_group();
#pragma unroll
      for (int a = 0; a < NA; a++) copy_async(weights.slot(me, i * NA + a), next + (k * NA + a) * 32);
      wait_groups<1>();  // The products before have used what `load` overwrites.
      if (k + 1 < SLICES) load(i + 1);
    }
  }
  wait_groups<0>();
#pragma unroll
  for (int a = 0; a < NA; a++) settle(y[a]);
}

template <int NA>
DEV void multiply(const Thread& me, float (&y)[NA][NT][4], Weights& weights, const V4* stream, int from, const u16* X,
                  const Exchange& exchange, bool wait) {
  if constexpr (WGMMA) return multiply_in_groups<NA>(me, y, weights, stream, from, X, exchange, wait);
  constexpr int ROUND = CLUSTER > 1 ? AHEAD : RING / NA;  // Slices in the ring, and of the loop's body.
  constexpr int NEXT = CLUSTER > 1 ? AHEAD : ROUND < 4 || ROUND % 2 ? 1 : 2;  // Slices in registers.
  static_assert(SLICES % ROUND == 0 && ROUND % NEXT == 0, "whole rounds of slices");
  static_assert(CLUSTER > 1 || RING % NA == 0, "whole slices in the ring");
  V4 coming[NEXT][NA];
  const V4* slots = weights.slot(me, CLUSTER > 1 ? from : 0);
  auto load = [&](int i, int k) {
    if (CLUSTER == 1) wait_copies<CLUSTER == 1 ? RING - NEXT * NA : 0>();
#pragma unroll
    for (int a = 0; a < NA; a++)
      coming[i % NEXT][a] = load_weights(slots + ((CLUSTER > 1 ? k : i % ROUND) * NA + a) * 32);
  };
#pragma unroll
  for (int k = 0; k < NEXT; k++) load(k, k);
  if (wait && EARLY) exchange.wait();
  const V4* next = Weights::source(me, stream, from + RING);  // Not used in a cluster.
  const u16* pairs = X + ((me.lane & 7) + ((me.lane >> 4) << 3)) * STRIDE + ((me.lane >> 3) & 1) * 8;
  const u16* one = X + (me.lane & 7) * STRIDE + ((me.lane >> 3) & 1) * 8;
#pragma unroll 1
  for (int k0 = 0; k0 < SLICES; k0 += ROUND) {
#pragma unroll
    for (int i = 0; i < ROUND; i++) {
      const int k = k0 + i;
      u32 A[NA][4];
#pragma unroll
      for (int a = 0; a < NA; a++) {
        V4 v = coming[i % NEXT][a];
        A[a][0] = v.x, A[a][1] = v.y, A[a][2] = v.z, A[a][3] = v.w;
      }
#pragma unroll
      for (int n = 0; n < PAIRED; n += 2) {
        if (!has_tile(n)) continue;
        u32 b[4];
        load_matrices(b, pairs + n * 8 * STRIDE + k * 16);
#pragma unroll
        for (int a = 0; a < NA; a++) mma(y[a][n], A[a], b[0], b[1]), mma(y[a][n + 1], A[a], b[2], b[3]);
      }
      auto one_tile = [&](int n) {
        u32 b[2];
        load_matrices(b, one + n * 8 * STRIDE + k * 16);
#pragma unroll
        for (int a = 0; a < NA; a++) mma(y[a][n], A[a], b[0], b[1]);
      };
      if (PAIRED + 1 < NT) one_tile(NT - 2);
      if (PAIRED < NT && has_tile(NT - 1)) one_tile(NT - 1);
      // The products above have used what was in the slots.
      if (CLUSTER == 1)
#pragma unroll
        for (int a = 0; a < NA; a++)
          copy_async(weights.slot(me, i * NA + a), next + (k * NA + a) * 32);
      if (k + NEXT < SLICES) load(i + NEXT, k + NEXT);
    }
  }
}

// Puts a warp's part of an array as the operand X [rows, F] of a product.
DEV void put(const Thread& me, Exchange& exchange, u16* X, const Low& x) {
  auto place = [&](int a, int n, int h, int t) {
    return (u32*)(X + place_in_operand(8 * n + me.g, me.warp * WIDTH + 16 * a + 8 * h + 2 * t));
  };
  if (CLUSTER == 1) {
    each_pair([&](int a, int n, int h) { *place(a, n, h, me.t) = transpose(x[a][n][h]); });
    if (WGMMA) fence_operands();
    return;
  }
  exchange.bytes += rows_of(block_index()) * F * 2;
  each_tile([&](int a, int n) {
    // Half the messages: an even t takes h = 0 of the next t, which takes h = 1 from it.
    const u32 lower = transpose(x[a][n][0]), upper = transpose(x[a][n][1]);
    const int odd = me.t % 2;
    const u32 got = shuffle_xor(odd ? lower : upper, 1);
    exchange.put(place(a, n, odd, me.t - odd), odd ? got : lower, odd ? upper : got);
  });
}
// Copies that operand into an array [..., stride] over all sequences and steps.
DEV void copy_out(const Place& at, const u16* X, u16* to, int stride, int t) {
  const int rows = WGMMA ? (at.rows + 7) / 8 * 8 : at.rows;
#pragma unroll 1
  for (int i = thread_index(); i < rows * (F / 8); i += THREADS) {
    // In the order of the shared memory: 8 threads read 128 bytes.
    const int r = WGMMA ? i / F * 8 + i % 8 : i / (F / 8), piece = (WGMMA ? i % F / 8 : i % (F / 8)) * 8;
    if (WGMMA && r >= at.rows) continue;
    *(V4*)(to + (size_t)at.row(r, t) * stride + piece) = *(const V4*)(X + place_in_operand(r, piece));
  }
}
