// Code of both passes: sizes, the mapping of threads to rows and features (see README.md), and sums
// over a row. Macros in capitals come from layout.py.
#pragma once
#include "warp.h"

enum { NO_GATES, SLOT_GATES, UNIT_GATES };

constexpr int D = F / HEADS;
constexpr int THREADS = 32 * WARPS;
// In a cluster these are divided among its blocks, and each of them has all rows.
constexpr int LOCAL_WARPS = WARPS / CLUSTER, LOCAL_THREADS = 32 * LOCAL_WARPS;
constexpr int ROWS = 8 * NT;         // Memory rows of a block, whole sequences.
constexpr int WIDTH = F / WARPS;     // Features of a warp, in every product.
constexpr int MT = WIDTH / 16;       // WIDTH in tiles of 16.
constexpr int SLICES = F / 16;       // Slices of the contracted axis.
constexpr int STRIDE = F + 8;        // Stride of a row in shared memory, without bank conflicts.
constexpr int COLUMNS = (2 * NT + 7) / 8 * 8;  // Rows of a thread's numbers, padded.

constexpr int OWN = S > 8 ? S / 8 : 1;                // Tiles of 8 rows of a sequence...
constexpr int INPUTS = (S > 8 ? 1 : 8 / S) * INPUT_ROWS;  // ...or input rows of a tile's sequences.
constexpr int WARPS_A_HEAD = D > WIDTH ? D / WIDTH : 1;
constexpr int HEAD_TILES = (D > WIDTH ? WIDTH : D) / 16;  // Tiles of a head in a warp.
constexpr int HEADS_A_WARP = MT / HEAD_TILES;

// AHEAD: slices of weights that a cluster prefetches into registers. RING: fragments of weights that a warp
// of a block has under way. EARLY: whether the first are fetched before a barrier.
static_assert(F % 64 == 0 && WIDTH % 16 == 0 && D % 16 == 0, "tiles of 16 features");
static_assert(MT % HEAD_TILES == 0 && (WARPS_A_HEAD == 1 || D % WIDTH == 0), "whole heads");
static_assert((8 % S == 0 || S % 8 == 0) && NT % OWN == 0, "whole sequences");
static_assert(INPUTS <= 8 && ROWS <= LOCAL_THREADS, "one tile of input rows, a thread for each row");
static_assert(WARPS % CLUSTER == 0 && HEADS % CLUSTER == 0, "whole warps and heads in a block");

// Vectors, and in the backward pass their gradients.
constexpr int QKV_BIAS = 0, QKV_SCALE = 3 * F, QKV_SHIFT = 6 * F, NORM1 = 9 * F, MLP_BIAS = 11 * F;
constexpr int NORM2 = MLP_BIAS + LAYERS * F, SLOT = NORM2 + 2 * F;
constexpr int VECTORS = SLOT + (GATES == SLOT_GATES ? 2 * F : 0);

// Values saved for the backward pass, a record for each step and block: in the order of its threads,
// in units of four words per thread, and six numbers for each row.
template <int WORDS> constexpr int FOURS = (WORDS + 3) / 4;
constexpr int TILE = FOURS<2 * MT * NT>;  // Size of one array [features, rows].
constexpr int KEPT_QKV = 0, KEPT_NORM1 = 3 * TILE, KEPT_NORM2 = 4 * TILE, KEPT_GATES = 5 * TILE;
constexpr int GATE_TILE = FOURS<2 * NT>;   // Size of one gate of 16 features.
constexpr int KEPT_SIGNS = KEPT_GATES + (GATES == UNIT_GATES ? 2 * MT * GATE_TILE : 0);
constexpr int SIGN_WORDS = (4 * MT * NT + 31) / 32, SIGNS = FOURS<SIGN_WORDS>;
constexpr int RECORD = KEPT_SIGNS + (LAYERS - 1) * SIGNS;
enum { QKV_MEAN, QKV_RSTD, NORM1_RSTD, NORM2_RSTD, INPUT_GATE, FORGET_GATE, STATISTICS };
static_assert(RECORD == RECORD_FOURS && VECTORS == VECTOR_SIZE, "as layout.py has it");

// Flags of a step of a sequence: it starts from the fresh memory; it is skipped.
constexpr int RESET = 1, SKIP = 2;

// A thread's part of an array [features, rows]: in tile (a, n), with h and q 0 or 1, features
// 16a + 8h + g of its warp and rows 8n + 2t + q.
typedef float Wide[MT][NT][4];  // In float32, at [a][n][2h + q].
typedef u32 Low[MT][NT][2];     // In bfloat16, both rows in one word at [a][n][h].

struct Thread {
  int lane, warp, g, t;
  DEV Thread() {
    lane = thread_index() & 31, warp = thread_index() >> 5;
    g = lane >> 2, t = lane & 3;
  }
  DEV int feature(int a, int h) const { return warp * WIDTH + 16 * a + 8 * h + g; }
  DEV int row(int n, int q) const { return 8 * n + 2 * t + q; }
  DEV int local_warp() const { return CLUSTER > 1 ? local_index() >> 5 : warp; }
};

// Rows of a block: ROWS in the first FULL_BLOCKS, one group of OWN tiles less in the others. Work on
// a group that a block does not have is skipped.
constexpr bool EVEN = FULL_BLOCKS < 0;
DEV int rows_of(int block) { return EVEN || block < FULL_BLOCKS ? ROWS : ROWS - 8 * OWN; }
// Opaque: otherwise the compiler divides the code of a step into that of both kinds of block.
DEV bool has_tile(int n) { return EVEN || n < NT - OWN || again(block_index()) < FULL_BLOCKS; }
// Groups of warps multiply the rows that a block does not have, too: their sums start somewhere.
DEV bool begins_tile(int n) { return WGMMA || has_tile(n); }

template <class Fn> DEV void each_tile(Fn fn) {
#pragma unroll
  for (int n = 0; n < NT; n++)
    if (has_tile(n))
#pragma unroll
      for (int a = 0; a < MT; a++) fn(a, n);
}
template <class Fn> DEV void each_pair(Fn fn) {
  each_tile([&](int a, int n) {
#pragma unroll
    for (int h = 0; h < 2; h++) fn(a, n, h);
  });
}
template <class Fn> DEV void each_number(Fn fn) {
  each_tile([&](int a, int n) {
#pragma unroll
    for (int i = 0; i < 4; i++) fn(a, n, i >> 1, i & 1);
  });
}
// The same as a loop, for arrays in memory: less code, fewer registers.
template <class Fn> DEV void each_number_in_turn(Fn fn) {
#pragma unroll 1
  for (int i = 0; i < 4 * MT * NT; i++) fn(i / (4 * NT), i / 4 % NT, i / 2 % 2, i % 2);
}
DEV float half_of(u32 x, int q) { return q ? high(x) : low(x); }
DEV void round_all(Low& to, const Wide& from) {
  each_pair([&](int a, int n, int h) { to[a][n][h] = pack(from[a][n][2 * h], from[a][n][2 * h + 1]); });
}

// The position of a block's rows in arrays over all sequences and steps.
struct Place {
  u32 first;  // Row of the batch: of whole groups, which the compiler can use because it is unsigned.
  int rows, sequences, steps;
  DEV explicit Place(const int* sizes) {
    const int block = again(block_index());
    sequences = again(sizes[0]), steps = again(sizes[1]);
    const u32 groups = block * (NT / OWN - !EVEN) + (EVEN ? 0 : block < FULL_BLOCKS ? block : FULL_BLOCKS);
    first = groups * (8 * OWN);
    const int left = sequences * S - (int)first, most = rows_of(block);
    rows = left < most ? left : most;
  }
  DEV bool has(int r) const { return r < rows; }
  DEV int sequence(int r) const { return (first + (r < rows ? r : rows - 1)) / S; }
  DEV int step(int b, int t) const { return t * sequences + b; }
  DEV int row(int r, int t) const { return t * sequences * S + first + r; }
  // Where row 8n + 2t + q of a thread starts in an array [T, B, S, F], in numbers.
  DEV size_t start(const Thread& me, int n, int q, int t) const {
    return ((size_t)row(2 * me.t, t) + 8 * n + q) * F;
  }
  // The sequence of a thread's row in tile n, the last one for rows past the batch.
  DEV int sequence(const Thread& me, int n, int q) const {
    return sequence(8 * n + (S < 8 ? 2 * me.t : 0) + (S == 1 ? q : 0));
  }
  // Which of a thread's rows, 2n + q, have the flag.
  DEV u32 flagged(const u8* flags, const Thread& me, int t, int flag) const {
    u32 bits = 0;
#pragma unroll
    for (int c = 0; c < 2 * NT; c++)
      if (flags[step(sequence(me, c >> 1, c & 1), t)] & flag) bits |= 1u << c;
    return bits;
  }
};

// Operands and partial sums, which every warp puts for all warps: `begin`, puts, `wait`, reads. A
// block has a barrier between. In a cluster each block gets a copy, in one of two buffers, which take
// turns. Then nothing else has to be waited for: whoever puts into a buffer has waited for the turn
// before, which all warps began after they had read this buffer, also with lanes that put nothing.
constexpr int BUFFERS = CLUSTER > 1 ? 2 : 1;
struct Exchange {
  Barrier* barriers;  // [2], one for each buffer.
  u32 turn = ~0u;
  int bytes = 0;
  DEV explicit Exchange(Barrier* both) : barriers(both) {
    if (CLUSTER == 1) return;
    if (local_index() == 0) init(barriers), init(barriers + 1);
    cluster_sync();
  }
  DEV int buffer() const { return CLUSTER > 1 ? turn % 2 : 0; }
  DEV void begin() {
    if (CLUSTER > 1) sync_warp();
    turn++, bytes = 0;
  }
  DEV void put(float* to, float x) const {
    if (CLUSTER == 1) *to = x;
    else send((u32*)to, bits(x), barriers + turn % 2);
  }
  DEV void put(u32* to, u32 x, u32 y) const { send(to, x, y, barriers + turn % 2); }
  DEV void wait() const {
    if (CLUSTER == 1) return sync();
    if (local_index() == 0) expect(barriers + turn % 2, bytes);
    wait_for(barriers + turn % 2, turn / 2 % 2);
  }
  // The shared memory of a block has to be there while others write into it.
  DEV void end() const {
    if (CLUSTER > 1) cluster_sync();
  }
};

// Sums over rows: in each warp, then over all warps.
struct Sums {
  float of[2][WARPS][ROWS];
  // Sums x[2n + q] over the 8 threads with features of the same rows; each exchange halves the rows
  // of a thread.
  DEV void put(const Thread& me, Exchange& exchange, int which, float (&x)[COLUMNS]) {
    exchange.bytes += WARPS * ROWS * 4;
    int first = 0;
#pragma unroll
    for (int s = 0; s < 3; s++) {
      const int half = COLUMNS >> (s + 1), mask = 16 >> s;
      const bool upper = me.lane & mask;
      first += upper ? half : 0;
#pragma unroll
      for (int i = 0; i < COLUMNS / 2; i++) {  // A constant, or the loop stays one.
        if (i >= half) break;
        float sent = upper ? x[i] : x[i + half], kept = upper ? x[i + half] : x[i];
        x[i] = kept + shuffle_xor(sent, mask);
      }
    }
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; i++) {
      int c = first + i;
      if (c < 2 * NT) exchange.put(&of[which][me.warp][me.row(c >> 1, c & 1)], x[i]);
    }
  }
  DEV float total(int which, int r) const {
    float sum = 0.f;
    for (int w = 0; w < WARPS; w++) sum += of[which][w][r];
    return sum;
  }
};
DEV void put_sums(const Thread& me, Exchange& exchange, Sums (&sums)[BUFFERS], float (&x)[COLUMNS],
                  float (&y)[COLUMNS]) {
  exchange.begin();
  Sums& to = sums[exchange.buffer()];
  to.put(me, exchange, 0, x), to.put(me, exchange, 1, y);
}
DEV void clear(float (&x)[COLUMNS]) {
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) x[c] = 0.f;
}
template <class Fn> DEV void begin_sums(Wide& x, Fn fn) {
#pragma unroll
  for (int n = 0; n < NT; n++)
    if (begins_tile(n))
#pragma unroll
      for (int a = 0; a < MT; a++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[a][n][i] = fn(a, i >> 1);
}
DEV void clear(Wide& x) {
  begin_sums(x, [](int, int) { return 0.f; });
}

// Has the block's threads prefetch `count` pieces of memory, from(i) the start of one.
template <class Fn> DEV void prefetch_all(int count, int bytes, Fn from) {
  if (!PREFETCH) return;
#pragma unroll 1
  for (int i = thread_index(); i < count; i += THREADS) prefetch((const void*)from(i), bytes);
}

// Writes and reads a thread's words of its record, without those of a group that the block does not have.
template <int N> DEV bool has_four(int i) {
  return MT > 1 || N != 2 * NT || 4 * i < 2 * (NT - OWN) || has_tile(NT - 1);
}
template <int N> DEV void keep(V4* to, const u32* words) {
#pragma unroll
  for (int i = 0; i < FOURS<N>; i++) {
    if (!has_four<N>(i)) continue;
    u32 x[4];
#pragma unroll
    for (int j = 0; j < 4; j++) x[j] = 4 * i + j < N ? words[4 * i + j] : 0;
    to[i * THREADS + thread_index()] = V4{x[0], x[1], x[2], x[3]};
  }
}
template <int N> DEV void fetch(u32* words, const V4* from) {
#pragma unroll
  for (int i = 0; i < FOURS<N>; i++) {
    if (!has_four<N>(i)) continue;
    V4 v = load_once(from + i * THREADS + thread_index());
    u32 x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (4 * i + j < N) words[4 * i + j] = x[j];
  }
}
DEV void keep(V4* to, const Low& x) { keep<2 * MT * NT>(to, &x[0][0][0]); }
DEV void fetch(Low& x, const V4* from) { fetch<2 * MT * NT>(&x[0][0][0], from); }
// A block's record of a step, and a row's numbers.
template <class T> DEV T* record(T* records, int t) {
  return records + ((size_t)t * block_count() + block_index()) * RECORD * THREADS;
}
template <class T> DEV T* statistic(T* statistics, int which, int r, int t) {
  size_t rows = (size_t)block_count() * ROWS;
  return statistics + ((size_t)t * STATISTICS + which) * rows + block_index() * ROWS + r;
}
