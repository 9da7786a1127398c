// Attention of memory rows to the memory rows and input rows of their sequence, on tensor cores and
// in registers, with tiles of 8 queries. Keys also have tiles of 8: OWN tiles of the sequence's
// memory rows, then one of input rows. With S < 8 sequences share a tile, each with its own rows.
#pragma once
#include "core.h"

constexpr int KEY_TILES = OWN + 1, KEY_PAIRS = (KEY_TILES + 1) / 2;
constexpr int QUERY_PAIRS = (OWN + 1) / 2;
constexpr float HIDDEN = -1e30f;  // A masked logit.

// For queries of one tile: the entry of key g in key tile k and query 2t + q is at
// [k / 2][2 (k % 2) + q].
typedef float Scores[KEY_PAIRS][4];
DEV float& score(Scores& s, int k, int q) { return s[k / 2][2 * (k % 2) + q]; }

// Keys and values of the input rows that belong to a group of OWN tiles.
struct InputRows {
  const Thread& me;
  const Place& at;
  const u16* kv;  // [T, B, INPUT_ROWS, 2, F]
  int t, sequence;
  DEV bool has(int j) const {
    return j < INPUTS && (u32)(sequence + j / INPUT_ROWS) * S < at.first + at.rows;
  }
  DEV size_t place(int j, int kind) const {
    const int row = at.step(sequence + j / INPUT_ROWS, t) * INPUT_ROWS + j % INPUT_ROWS;
    return ((size_t)row * 2 + kind) * F;
  }
  // Row g, features 2t and 2t+1.
  DEV u32 by_row(int kind, int a, int h) const {
    if (!has(me.g)) return 0;
    return *(const u32*)(kv + place(me.g, kind) + me.warp * WIDTH + 16 * a + 8 * h + 2 * me.t);
  }
  // Feature g, rows 2t and 2t+1.
  DEV u32 by_feature(int kind, int a, int h) const {
    u32 x = 0;
#pragma unroll
    for (int q = 0; q < 2; q++)
      if (has(2 * me.t + q)) x |= (u32)kv[place(2 * me.t + q, kind) + me.feature(a, h)] << (16 * q);
    return x;
  }
  DEV void store(u16* to, int kind, int a, int h, u32 x) const {
#pragma unroll
    for (int q = 0; q < 2; q++)
      if (has(2 * me.t + q)) to[place(2 * me.t + q, kind) + me.feature(a, h)] = q ? x >> 16 : x & 0xffff;
  }
};
DEV InputRows input_rows(const Thread& me, const Place& at, const u16* kv, int t, int n) {
  return InputRows{me, at, kv, t, (int)((at.first + n / OWN * OWN * 8) / S)};
}

// Rows g of key tiles `pair` and the next, by features: a left operand [keys, features].
DEV void keys_first(u32 (&A)[4], const InputRows& in, const Low& x, int kind, int a, int n, int pair) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int k = 2 * pair + i % 2, h = i / 2;
    A[i] = k < OWN ? transpose(x[a][n / OWN * OWN + k][h]) : k == OWN ? in.by_row(kind, a, h) : 0;
  }
}
// The same with features as rows: a left operand [features, keys].
DEV void features_first(u32 (&A)[4], const InputRows& in, const Low& x, int kind, int a, int n,
                        int pair) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int k = 2 * pair + i / 2, h = i % 2;
    A[i] = k < OWN ? x[a][n / OWN * OWN + k][h] : k == OWN ? in.by_feature(kind, a, h) : 0;
  }
}

// s += keys times queries, over a warp's features of a head; likewise for values and cotangents.
DEV void scores(const InputRows& in, Scores& s, const Low& keys, int kind, const Low& queries, int n,
                int head) {
#pragma unroll
  for (int a = head * HEAD_TILES; a < (head + 1) * HEAD_TILES; a++) {
    u32 b0 = transpose(queries[a][n][0]), b1 = transpose(queries[a][n][1]);
#pragma unroll
    for (int pair = 0; pair < KEY_PAIRS; pair++) {
      u32 A[4];
      keys_first(A, in, keys, kind, a, n, pair);
      mma(s[pair], A, b0, b1);
    }
  }
}
// For heads wider than a warp's features: sums over their warps through shared memory.
DEV float* shared_scores(const Thread& me, float* shared, int warp, int n, int which) {
  return shared + ((which * WARPS + warp) * NT + n) * KEY_PAIRS * 128 + me.lane;
}
DEV void give_scores(const Thread& me, float* shared, const Scores& s, int n, int which) {
  float* to = shared_scores(me, shared, me.warp, n, which);
#pragma unroll
  for (int i = 0; i < 4 * KEY_PAIRS; i++) to[32 * i] = s[i / 4][i % 4];
}
DEV void sum_scores(const Thread& me, const float* shared, Scores& s, int n, int which) {
#pragma unroll
  for (int i = 0; i < 4 * KEY_PAIRS; i++) s[i / 4][i % 4] = 0.f;
  for (int o = 0; o < WARPS_A_HEAD; o++) {
    int warp = me.warp / WARPS_A_HEAD * WARPS_A_HEAD + o;
    const float* from = shared_scores(me, (float*)shared, warp, n, which);
#pragma unroll
    for (int i = 0; i < 4 * KEY_PAIRS; i++) s[i / 4][i % 4] += from[32 * i];
  }
}
constexpr int SHARED_SCORES = WARPS_A_HEAD > 1 ? WARPS * NT * KEY_PAIRS * 128 : 1;

DEV void clear(Scores& s) {
#pragma unroll
  for (int i = 0; i < 4 * KEY_PAIRS; i++) s[i / 4][i % 4] = 0.f;
}
// A reduction over the keys of a query: over those of a thread, then over the other threads.
template <class Fn> DEV float over_keys(float x, Fn fn) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) x = fn(x, shuffle_xor(x, mask));
  return x;
}
// Converts logits to weights.
DEV void softmax(const Thread& me, Scores& s) {
  const float scale = 1.f / sqrtf((float)D);
#pragma unroll
  for (int q = 0; q < 2; q++) {
    const int query = (2 * me.t + q) / S;
    bool seen[KEY_TILES];
    float largest = HIDDEN, sum = 0.f;
#pragma unroll
    for (int k = 0; k < KEY_TILES; k++) {
      seen[k] = k < OWN ? me.g / S == query : me.g < INPUTS && me.g / INPUT_ROWS == query;
      if (seen[k]) largest = fmaxf(largest, score(s, k, q));
    }
    largest = over_keys(largest, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
    for (int k = 0; k < KEY_TILES; k++) {
      float& x = score(s, k, q);
      x = seen[k] ? exp_((x - largest) * scale) : 0.f;
      sum += x;
    }
    sum = over_keys(sum, [](float a, float b) { return a + b; });
#pragma unroll
    for (int k = 0; k < KEY_TILES; k++) score(s, k, q) *= 1.f / sum;
  }
}
// Converts cotangents of weights to those of logits.
DEV void softmax_backward(const Scores& weights, Scores& d) {
  const float scale = 1.f / sqrtf((float)D);
#pragma unroll
  for (int q = 0; q < 2; q++) {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < KEY_TILES; k++) {
      const int i = 2 * (k % 2) + q;
      sum += weights[k / 2][i] == 0.f ? 0.f : weights[k / 2][i] * d[k / 2][i];
    }
    sum = over_keys(sum, [](float a, float b) { return a + b; });
#pragma unroll
    for (int k = 0; k < KEY_TILES; k++) {
      const int i = 2 * (k % 2) + q;
      const float w = weights[k / 2][i];
      d[k / 2][i] = w == 0.f ? 0.f : w * (d[k / 2][i] - sum) * scale;
    }
  }
}
DEV u32 both_queries(const Scores& s, int k) {
  return k < KEY_TILES ? pack(s[k / 2][2 * (k % 2)], s[k / 2][2 * (k % 2) + 1]) : 0;
}

// x += the attention output of the rows of tile n.
DEV void attend(const InputRows& in, Wide& x, const Scores& weights, const Low& values, int n,
                int head) {
  u32 p[2 * KEY_PAIRS];
#pragma unroll
  for (int k = 0; k < 2 * KEY_PAIRS; k++) p[k] = k < KEY_TILES ? transpose(both_queries(weights, k)) : 0;
#pragma unroll
  for (int a = head * HEAD_TILES; a < (head + 1) * HEAD_TILES; a++)
#pragma unroll
    for (int pair = 0; pair < KEY_PAIRS; pair++) {
      u32 A[4];
      features_first(A, in, values, 1, a, n, pair);
      mma(x[a][n], A, p[2 * pair], p[2 * pair + 1]);
    }
}

// From weights and cotangents of logits of a group's queries, both [query tile][key tile], to the
// cotangents of its queries, keys and values, in place, and of its input rows.
DEV void attend_backward(const InputRows& in, u32 (&P)[OWN][2 * KEY_PAIRS], u32 (&dS)[OWN][2 * KEY_PAIRS],
                         Low (&qkv)[3], const Low& d, u16* d_kv, int n0, int head) {
#pragma unroll
  for (int a = head * HEAD_TILES; a < (head + 1) * HEAD_TILES; a++) {
    u32 dq[OWN][2], dkv[2][KEY_TILES][2];
#pragma unroll
    for (int o = 0; o < OWN; o++) {
      float y[4] = {};
#pragma unroll
      for (int pair = 0; pair < KEY_PAIRS; pair++) {
        u32 A[4];
        features_first(A, in, qkv[1], 0, a, n0, pair);
        mma(y, A, transpose(dS[o][2 * pair]), transpose(dS[o][2 * pair + 1]));
      }
      dq[o][0] = pack(y[0], y[1]), dq[o][1] = pack(y[2], y[3]);
    }
#pragma unroll
    for (int kind = 0; kind < 2; kind++) {  // Keys from queries, values from cotangents.
      auto from = [&](int tile, int h) { return kind ? d[a][n0 + tile][h] : qkv[0][a][n0 + tile][h]; };
#pragma unroll
      for (int k = 0; k < KEY_TILES; k++) {
        float y[4] = {};
#pragma unroll
        for (int pair = 0; pair < QUERY_PAIRS; pair++) {
          const int o = 2 * pair, next = o + 1 < OWN ? o + 1 : o;
          const bool two = o + 1 < OWN;
          u32 A[4] = {from(o, 0), from(o, 1), two ? from(next, 0) : 0, two ? from(next, 1) : 0};
          u32 b0 = kind ? P[o][k] : dS[o][k], b1 = kind ? P[next][k] : dS[next][k];
          mma(y, A, b0, two ? b1 : 0);
        }
        dkv[kind][k][0] = pack(y[0], y[1]), dkv[kind][k][1] = pack(y[2], y[3]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int o = 0; o < OWN; o++) {
        qkv[0][a][n0 + o][h] = dq[o][h];
        qkv[1][a][n0 + o][h] = dkv[0][o][h], qkv[2][a][n0 + o][h] = dkv[1][o][h];
      }
#pragma unroll
      for (int kind = 0; kind < 2; kind++) in.store(d_kv, kind, a, h, dkv[kind][OWN][h]);
    }
  }
}

// Both for all rows of a block, with shared memory for heads wider than a warp's features.
// x += the attention output.
DEV void attend_all(const Thread& me, const Place& at, const u16* kv, int t, float* shared,
                    const Low (&qkv)[3], Wide& x) {
  if (WARPS_A_HEAD > 1) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      if (!has_tile(n)) continue;
      Scores s;
      clear(s);
      scores(input_rows(me, at, kv, t, n), s, qkv[1], 0, qkv[0], n, 0);
      give_scores(me, shared, s, n, 0);
    }
    sync();
  }
#pragma unroll
  for (int n = 0; n < NT; n++) {
    if (!has_tile(n)) continue;
    const InputRows in = input_rows(me, at, kv, t, n);
#pragma unroll
    for (int head = 0; head < HEADS_A_WARP; head++) {
      Scores s;
      clear(s);
      if (WARPS_A_HEAD > 1) sum_scores(me, shared, s, n, 0);
      else scores(in, s, qkv[1], 0, qkv[0], n, head);
      softmax(me, s);
      attend(in, x, s, qkv[2], n, head);
    }
  }
}
// Logits, and cotangents of weights: keys with queries, values with cotangents.
DEV void scores_of(const InputRows& in, Scores (&s)[2], const Low (&qkv)[3], const Low& d, int n, int head) {
  clear(s[0]), clear(s[1]);
  scores(in, s[0], qkv[1], 0, qkv[0], n, head);
  scores(in, s[1], qkv[2], 1, d, n, head);
}
// From the cotangents d of the attention's output to those of queries, keys and values, in qkv.
DEV void attend_all_backward(const Thread& me, const Place& at, const u16* kv, int t, float* shared,
                             Low (&qkv)[3], const Low& d, u16* d_kv) {
  if (WARPS_A_HEAD > 1) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      if (!has_tile(n)) continue;
      const InputRows in = input_rows(me, at, kv, t, n);
      Scores s[2];
      scores_of(in, s, qkv, d, n, 0);
      give_scores(me, shared, s[0], n, 0), give_scores(me, shared, s[1], n, 1);
    }
    sync();
  }
#pragma unroll
  for (int n0 = 0; n0 < NT; n0 += OWN) {
    if (!has_tile(n0)) continue;
    const InputRows in = input_rows(me, at, kv, t, n0);
#pragma unroll
    for (int head = 0; head < HEADS_A_WARP; head++) {
      u32 P[OWN][2 * KEY_PAIRS], dS[OWN][2 * KEY_PAIRS];
#pragma unroll
      for (int o = 0; o < OWN; o++) {
        Scores s[2];
        if (WARPS_A_HEAD > 1) {
          sum_scores(me, shared, s[0], n0 + o, 0), sum_scores(me, shared, s[1], n0 + o, 1);
        } else {
          scores_of(in, s, qkv, d, n0 + o, head);
        }
        softmax(me, s[0]);
        softmax_backward(s[0], s[1]);
#pragma unroll
        for (int k = 0; k < 2 * KEY_PAIRS; k++) P[o][k] = both_queries(s[0], k), dS[o][k] = both_queries(s[1], k);
      }
      attend_backward(in, P, dS, qkv, d, d_kv, n0, head);
    }
  }
}
