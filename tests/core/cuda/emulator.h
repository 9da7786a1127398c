// A block of CUDA threads on a CPU: each thread is a fiber, and what a warp does together follows
// the PTX manual's layouts. Threads run in turns, or in random order from a seed: where a barrier
// is missing results then change. Shared memory starts as NaN. `launch` returns what went wrong, such
// as a warp whose threads do not meet in the same operation; null if nothing did. The blocks of a cluster run at once, and with random order
// what they send to each other arrives late, in random order too.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
#define DEV inline

struct alignas(16) V4 {
  u32 x, y, z, w;
};

namespace emulator {

struct Warp {
  int arrived = 0;
  u64 generation = 0;
  int operation[32];
  u32 in[32][10], out[32][4];
  const void* pointer[32];
};
// Threads and barriers of the blocks of a cluster.
static int threads, local_threads, current, block, blocks, at_barrier[CLUSTER + 1];
static u64 barriers[CLUSTER + 1], seed;
static void* shared[CLUSTER];
static std::vector<ucontext_t> contexts;
static std::vector<std::deque<std::pair<V4*, V4>>> copies;  // Of each thread, not yet arrived.
// Products of groups of warps of each thread, not yet computed.
struct GroupMma {
  float* c;
  const u32* a;
  u64 b;
  int tiles;
};
static std::vector<std::deque<std::vector<GroupMma>>> groups;
static std::vector<char> ended, stacks;
static std::vector<Warp> warps;
static ucontext_t caller;
static const char* failure;
static long idle;  // Switches since anything happened.

inline void fail(const char* text) {
  failure = text;
  setcontext(&caller);
}

inline int random(int n) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return (seed >> 33) % n;
}
// The thread to go on with: the next one, or with a seed any, more often one of the same warp. One
// warp falls behind, for a while.
inline int next_thread() {
  static int slow = 0;
  int next = current + 1;
  if (seed) {
    if (!random(20000)) slow = random(threads / 32);
    int warp = random(4) ? current / 32 : random(threads / 32);
    while (warp == slow && random(16)) warp = random(threads / 32);
    next = warp * 32 + random(32);
  }
  for (int i = 0; i < threads; i++, next++)
    if (next %= threads, !ended[next] && next != current) return next;
  return current;
}
struct Barrier {
  int missing;  // Bytes.
  short phase, expected;
  void add(int bytes) {
    missing += bytes;
    if (expected && missing == 0) expected = 0, phase ^= 1;
  }
};
static_assert(sizeof(Barrier) == 8, "as on a GPU");
struct Message {
  int block;
  u32 *to, x;
  Barrier* barrier;
};
static std::vector<Message> messages;
inline void deliver(int i) {
  const Message m = messages[i];
  messages[i] = messages.back(), messages.pop_back();
  const auto first = ended.begin() + m.block * local_threads;
  if (std::count(first, first + local_threads, 0) == 0)
    fail("a block writes to one that has ended");
  *m.to = m.x, m.barrier->add(-4), idle = 0;
}
inline void yield() {
  if (!messages.empty() && random(2)) deliver(random(messages.size()));
  int me = current, next = next_thread();
  if (++idle > 10'000'000) fail("all threads wait");
  if (next == me && messages.empty()) fail("threads wait for one that has ended");
  current = next;
  swapcontext(&contexts[me], &contexts[next]);
}
inline Warp& warp() { return warps[current / 32]; }
// The last of a warp's threads to arrive does it for all.
template <class Fn> void together(int operation, Fn fn) {
  Warp& w = warp();
  const u64 generation = w.generation;
  w.operation[current % 32] = operation;
  if (++w.arrived < 32) {
    while (w.generation == generation) yield();
    return;
  }
  for (int other : w.operation)
    if (other != operation) fail("a warp divided");
  fn(w);
  w.arrived = 0, w.generation++, idle = 0;
}
inline float number(u32 bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline u32 bits(float x) {
  u32 r;
  memcpy(&r, &x, 4);
  return r;
}
inline float half(u32 x, int i) { return number(i ? x & 0xffff0000u : x << 16); }
inline u32 rounded(float x) {
  const u32 r = bits(x);
  if ((r & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (r + 0x7fff + ((r >> 16) & 1)) >> 16;
}

template <class Fn> struct Entry {
  static Fn* fn;
  static void run() {
    (*fn)();
    ended[current] = 1;
    const int next = next_thread();
    if (next == current) setcontext(&caller);
    current = next;
    setcontext(&contexts[next]);
  }
};
template <class Fn> Fn* Entry<Fn>::fn;

// Runs fn(shared memory) in every thread of every block.
template <class Fn>
const char* launch(int num_blocks, int num_threads, size_t shared_bytes, u64 order, Fn body) {
  const size_t stack = 1 << 18, size = shared_bytes / 64 + 1;  // In 64 bytes.
  std::vector<u32> memory(16 * (size * CLUSTER + 1));
  for (int r = 0; r < CLUSTER; r++)
    shared[r] = (void*)(((uintptr_t)memory.data() + 63) / 64 * 64 + 64 * size * r);
  auto fn = [&]() { body(shared[current / local_threads]); };
  threads = CLUSTER * num_threads, local_threads = num_threads;
  blocks = num_blocks, seed = order, Entry<decltype(fn)>::fn = &fn;
  failure = nullptr, idle = 0, messages.clear();
  stacks.resize(stack * threads);
  for (block = 0; block < blocks; block++) {
    memset(memory.data(), 0xff, memory.size() * 4);
    contexts.assign(threads, ucontext_t()), ended.assign(threads, 0), warps.assign(threads / 32, Warp());
    copies.assign(threads, {}), groups.assign(threads, {});
    for (int r = 0; r <= CLUSTER; r++) at_barrier[r] = 0, barriers[r] = 0;
    for (int i = 0; i < threads; i++) {
      getcontext(&contexts[i]);
      contexts[i].uc_stack.ss_sp = stacks.data() + stack * i;
      contexts[i].uc_stack.ss_size = stack;
      contexts[i].uc_link = &caller;
      makecontext(&contexts[i], (void (*)())Entry<decltype(fn)>::run, 0);
    }
    current = 0;
    swapcontext(&caller, &contexts[0]);
    for (const auto& left : copies)
      if (!failure && !left.empty()) failure = "a thread has ended before its copies";
    for (const auto& left : groups)
      if (!failure && !left.empty()) failure = "a thread has ended before its products";
    if (!failure && !messages.empty()) failure = "a block has ended before it got all";
    if (failure) break;
  }
  return failure;
}
}  // namespace emulator

DEV int rank() { return emulator::current / emulator::local_threads; }
DEV int local_index() { return emulator::current % emulator::local_threads; }
DEV int thread_index() { return emulator::current; }
DEV int block_index() { return emulator::block; }
DEV int block_count() { return emulator::blocks; }
DEV void sync_at(int barrier, int all) {
  using namespace emulator;
  const u64 generation = barriers[barrier];
  if (++at_barrier[barrier] == all) at_barrier[barrier] = 0, barriers[barrier]++, idle = 0;
  else
    while (barriers[barrier] == generation) yield();
}
DEV void sync() { sync_at(rank(), emulator::local_threads); }
DEV void cluster_sync() { sync_at(CLUSTER, emulator::threads); }
using emulator::Barrier;
DEV void init(Barrier* barrier) { *barrier = Barrier(); }
DEV void send(u32* to, u32 x, Barrier* barrier) {
  using namespace emulator;
  for (int r = 0; r < CLUSTER; r++) {
    auto there = [&](void* p) { return (char*)shared[r] + ((char*)p - (char*)shared[rank()]); };
    messages.push_back({r, (u32*)there(to), x, (Barrier*)there(barrier)});
    if (!seed) deliver(messages.size() - 1);
  }
}
DEV void send(u32* to, u32 x, u32 y, Barrier* barrier) {
  if ((uintptr_t)to % 8) emulator::fail("two words are not aligned");
  send(to, x, barrier), send(to + 1, y, barrier);
}
DEV void expect(Barrier* barrier, int bytes) { barrier->expected = 1, barrier->add(bytes); }
DEV void wait_for(Barrier* barrier, int parity) {
  while (barrier->phase == parity) emulator::yield();
}
DEV void sync_warp() { emulator::together(98, [](emulator::Warp&) {}); }
DEV int again(int x) { return x; }
DEV float shuffle_xor(float x, int mask) {
  using namespace emulator;
  const int lane = current % 32;
  warp().in[lane][0] = bits(x);
  together(100 + mask, [&](Warp& w) {
    for (int i = 0; i < 32; i++) w.out[i][0] = w.in[i ^ mask][0];
  });
  return number(warp().out[lane][0]);
}
using emulator::bits;
DEV u32 shuffle_xor(u32 x, int mask) { return emulator::bits(shuffle_xor(emulator::number(x), mask)); }
DEV u32 pack(float low, float high) { return emulator::rounded(low) | emulator::rounded(high) << 16; }
DEV float low(u32 x) { return emulator::half(x, 0); }
DEV float high(u32 x) { return emulator::half(x, 1); }
DEV void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  using namespace emulator;
  const int lane = current % 32;
  u32* in = warp().in[lane];
  for (int i = 0; i < 4; i++) in[i] = a[i], in[6 + i] = bits(c[i]);
  in[4] = b0, in[5] = b1;
  together(1, [](Warp& w) {
    float A[16][16], B[16][8];
    for (int i = 0; i < 32; i++)
      for (int half_of_k = 0; half_of_k < 2; half_of_k++)
        for (int p = 0; p < 2; p++) {
          const int g = i >> 2, k = 2 * (i & 3) + p + 8 * half_of_k;
          A[g][k] = half(w.in[i][2 * half_of_k], p), A[g + 8][k] = half(w.in[i][2 * half_of_k + 1], p);
          B[k][g] = half(w.in[i][4 + half_of_k], p);
        }
    for (int i = 0; i < 32; i++)
      for (int j = 0; j < 4; j++) {
        const int row = (i >> 2) + 8 * (j >> 1), column = 2 * (i & 3) + (j & 1);
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += A[row][k] * B[k][column];
        w.out[i][j] = bits(number(w.in[i][6 + j]) + sum);
      }
  });
  for (int i = 0; i < 4; i++) c[i] = number(warp().out[lane][i]);
}
DEV u32 transpose(u32 x) {
  using namespace emulator;
  const int lane = current % 32;
  warp().in[lane][0] = x;
  together(2, [](Warp& w) {
    u32 M[8][8];
    for (int i = 0; i < 32; i++)
      for (int p = 0; p < 2; p++) M[i >> 2][2 * (i & 3) + p] = w.in[i][0] >> (16 * p) & 0xffff;
    for (int i = 0; i < 32; i++) w.out[i][0] = M[2 * (i & 3)][i >> 2] | M[2 * (i & 3) + 1][i >> 2] << 16;
  });
  return warp().out[lane][0];
}
template <int N> void load_matrices(u32 (&r)[N], const void* row) {
  using namespace emulator;
  const int lane = current % 32;
  warp().pointer[lane] = row;
  together(10 + N, [](Warp& w) {
    for (int i = 0; i < 32; i++)
      for (int m = 0; m < N; m++) {
        const char* from = (const char*)w.pointer[8 * m + (i >> 2)];
        if ((uintptr_t)from % 16) fail("a row of a matrix is not aligned");
        memcpy(&w.out[i][m], from + 4 * (i & 3), 4);
      }
  });
  for (int m = 0; m < N; m++) r[m] = warp().out[lane][m];
}
// A copy arrives as late as the program allows: when the thread waits for it.
DEV void copy_async(V4* to, const V4* from) {
  if ((uintptr_t)to % 16 || (uintptr_t)from % 16) emulator::fail("a copy is not aligned");
  emulator::copies[emulator::current].push_back({to, *from});
}
template <int N> void wait_copies() {
  auto& copies = emulator::copies[emulator::current];
  for (; copies.size() > N; copies.pop_front()) *copies.front().first = copies.front().second;
}
DEV void prefetch(const void* p, int bytes) {
  if ((uintptr_t)p % 16 || bytes % 16 || bytes <= 0) emulator::fail("a prefetch is not aligned");
  for (int i = 0; i < bytes; i += 4) (void)((const volatile u32*)p)[i / 4];
}
DEV V4 load_weights(const V4* p) { return *p; }
DEV V4 load_once(const V4* p) { return *p; }
// Products of groups of warps read their operands, and write, as late as the program allows.
DEV u64 in_shared(const void* B, int by_column, int by_row) {
  const u64 start = (const char*)B - (const char*)emulator::shared[rank()];
  if (start % 16 || by_column % 16 || by_row % 16) emulator::fail("a matrix is not aligned");
  return start >> 4 | (u64)(by_column >> 4) << 16 | (u64)(by_row >> 4) << 32;
}
DEV void fence_operands() {}
DEV void begin_group() { emulator::groups[emulator::current].push_back({}); }
DEV void end_group() {}
template <int TILES> void group_mma(float (&c)[TILES][4], const u32 (&a)[4], u64 b) {
  emulator::groups[emulator::current].back().push_back({&c[0][0], a, b, TILES});
}
inline void compute(const emulator::GroupMma& one) {
  using namespace emulator;
  const int lane = current % 32;
  u32* in = warp().in[lane];
  for (int i = 0; i < 4; i++) in[i] = one.a[i];
  warp().pointer[lane] = one.c;
  in[4] = one.b, in[5] = one.b >> 32;
  together(3, [&](Warp& w) {
    for (int i = 0; i < 32; i++)
      if (w.in[i][4] != w.in[0][4] || w.in[i][5] != w.in[0][5]) fail("a warp has several matrices");
    auto bytes = [&](int bit) { return (one.b >> bit & 0x3fff) * 16; };
    const char* B = (const char*)shared[rank()] + bytes(0);
    for (int i = 0; i < 32; i++)
      for (int j = 0; j < 4 * one.tiles; j++) {
        const int row = (i >> 2) + 8 * (j >> 1 & 1), column = j / 4 * 8 + 2 * (i & 3) + (j & 1);
        float sum = 0;
        for (int k = 0; k < 16; k++) {
          const u32* from = w.in[row % 8 * 4 + k % 8 / 2];
          u16 b;
          memcpy(&b, B + column / 8 * bytes(32) + k / 8 * bytes(16) + column % 8 * 16 + k % 8 * 2, 2);
          sum += half(from[row / 8 + k / 8 * 2], k % 2) * half(b, 0);
        }
        ((float*)w.pointer[i])[j] += sum;
      }
  });
}
template <int N> void wait_groups() {
  auto& mine = emulator::groups[emulator::current];
  while (mine.size() > N) {
    const auto first = mine.front();
    mine.pop_front();
    for (const auto& one : first) compute(one);
  }
}
template <int TILES> void settle(float (&)[TILES][4]) {}
// Rounded to 11 bits, as far off as the chip's may be.
DEV float tanh_(float x) {
  return emulator::number((emulator::bits(std::tanh(x)) + 0x1000) & 0xffffe000u);
}
DEV float exp_(float x) { return std::exp(x); }
DEV float rsqrt_(float x) { return 1.f / std::sqrt(x); }
