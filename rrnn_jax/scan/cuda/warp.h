// The instructions of the kernels: inline PTX on a GPU; on a CPU the emulator of the tests
// (-DEMULATED). All exist from compute capability 8.0 on, those of clusters from 9.0 on.
#pragma once
// Blocks of a cluster. They share rows and act as one block: `thread_index`, `block_index` and
// `block_count` are those of the cluster, `local_index` is a thread's in its own block.
#ifndef CLUSTER
#define CLUSTER 1
#endif
#ifdef EMULATED
#include "emulator.h"
#else

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define DEV __device__ __forceinline__

struct alignas(16) V4 {
  u32 x, y, z, w;
};

DEV int rank() { return blockIdx.x % CLUSTER; }
DEV int local_index() { return threadIdx.x; }
DEV int thread_index() { return CLUSTER > 1 ? rank() * blockDim.x + threadIdx.x : threadIdx.x; }
DEV int block_index() { return blockIdx.x / CLUSTER; }
DEV int block_count() { return gridDim.x / CLUSTER; }
// A barrier of the threads of a block, of a cluster too.
DEV void sync() { __syncthreads(); }
DEV void sync_warp() { __syncwarp(); }
// The same number, opaque to the compiler: values that depend on it are recomputed in every step
// instead of staying in registers.
DEV int again(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
DEV float shuffle_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
DEV u32 shuffle_xor(u32 x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

// Two numbers rounded to bfloat16, the first in the low half; and back.
DEV u32 pack(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEV u32 bits(float x) { return __float_as_uint(x); }
DEV float low(u32 x) { return __uint_as_float(x << 16); }
DEV float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }

// c += A B for A [16, 16], B [16, 8] in bfloat16. With g = lane / 4 and t = lane % 4, a thread has
// these entries: of c rows g, g, g+8, g+8 and columns 2t, 2t+1, 2t, 2t+1; of A, in pairs of columns,
// rows g, g+8, g, g+8 and columns 2t, 2t, 2t+8, 2t+8; of B, in pairs of rows, column g and rows 2t,
// 2t+8.
DEV void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The transpose of a matrix [8, 8]; a thread has row g, columns 2t and 2t+1.
DEV u32 transpose(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
// Matrices [8, 8] from shared memory: lanes 8m to 8m+7 point at the rows of matrix m.
DEV void load_matrices(u32 (&r)[4], const void* row) {
  u32 s = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s)
               : "memory");
}
DEV void load_matrices(u32 (&r)[2], const void* row) {
  u32 s = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(s)
               : "memory");
}
// Copies 16 bytes to shared memory, a group of copies by itself; waits for all of the thread's but
// the last N.
DEV void copy_async(V4* to, const V4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\ncp.async.commit_group;"
               :
               : "r"((u32)__cvta_generic_to_shared(to)), "l"(from)
               : "memory");
}
template <int N> DEV void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
// Weights, from shared memory.
DEV V4 load_weights(const V4* p) {
  V4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"((u32)__cvta_generic_to_shared(p)));
  return v;
}
// Memory into L2; `bytes` is a multiple of 16. On compute capability 9.0 or later.
DEV void prefetch(const void* p, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
}
// What is read once is not cached in L1.
DEV V4 load_once(const V4* p) {
  V4 v;
  asm("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}

// Clusters. What a thread sends is written to the same place in the shared memory of every block of
// its cluster, where a barrier counts the bytes. `cluster_sync` would do as well, but it waits for
// all writes to global memory and empties L1.
typedef u64 Barrier;  // PTX's mbarrier.
#if CLUSTER > 1
#define IN_CLUSTER __cluster_dims__(CLUSTER, 1, 1)
#else
#define IN_CLUSTER
#endif
DEV void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// For phases of one thread's `expect`. Other blocks may use it after `cluster_sync`.
DEV void init(Barrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;"
               :
               : "r"((u32)__cvta_generic_to_shared(barrier))
               : "memory");
}
// The address of the same place in block r.
DEV u32 in_block(const void* p, int r) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"((u32)__cvta_generic_to_shared(p)), "r"(r));
  return there;
}
DEV void send(u32* to, u32 x, Barrier* barrier) {
#pragma unroll
  for (int r = 0; r < CLUSTER; r++)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 :
                 : "r"(in_block(to, r)), "r"(x), "r"(in_block(barrier, r))
                 : "memory");
}
// Two words; the place is a multiple of 8 bytes.
DEV void send(u32* to, u32 x, u32 y, Barrier* barrier) {
#pragma unroll
  for (int r = 0; r < CLUSTER; r++)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];"
                 :
                 : "r"(in_block(to, r)), "r"(x), "r"(y), "r"(in_block(barrier, r))
                 : "memory");
}
// The phase ends when this many bytes have arrived; they may be there before.
DEV void expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"((u32)__cvta_generic_to_shared(barrier)), "r"(bytes)
               : "memory");
}
// Waits for the end of a phase: of the first and every other one if `parity` is 0.
DEV void wait_for(Barrier* barrier, int parity) {
  u32 ended = 0;
  while (!ended)
    asm volatile(
        "{.reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;}"
        : "=r"(ended)
        : "r"((u32)__cvta_generic_to_shared(barrier)), "r"(parity)
        : "memory");
  sync_warp();
}

// Products of groups of four consecutive warps (PTX's wgmma), on compute capability 9.0 alone. Matrices B
// [16, 8 TILES] are in shared memory, in parts of 8 rows of B^T by 16 bytes: those of other columns
// `by_column` bytes further, those of other rows `by_row`.
DEV u64 in_shared(const void* B, int by_column, int by_row) {
  const u64 start = (u32)__cvta_generic_to_shared(B);
  return start >> 4 | (u64)(by_column >> 4) << 16 | (u64)(by_row >> 4) << 32;
}
// What a thread has written to shared memory is visible to them, after a barrier.
DEV void fence_operands() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV void begin_group() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void end_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all but the last N groups.
template <int N> DEV void wait_groups() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// The compiler moves no use of c across this.
template <int TILES> DEV void settle(float (&c)[TILES][4]) {
#pragma unroll
  for (int i = 0; i < 4 * TILES; i++) asm volatile("" : "+f"(c[i / 4][i % 4])::"memory");
}
// c += A B as `mma`, for TILES tiles: each warp has 16 rows of A and c.
template <int TILES> struct GroupMma;
#define GROUP_MMA(TILES, COLUMNS, C, A, B, ...)                                                       \
  template <> struct GroupMma<TILES> {                                                                \
    DEV static void add(float (&c)[TILES][4], const u32 (&a)[4], u64 b) {                             \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32.bf16.bf16 "                   \
                   "{" C "},{" A "}," B ",1,1,1,0;"                                                   \
                   : __VA_ARGS__                                                                      \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                             \
    }                                                                                                 \
  };
#define TILE_OF(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define C1 "%0,%1,%2,%3"
#define C2 C1 ",%4,%5,%6,%7"
#define C3 C2 ",%8,%9,%10,%11"
#define C4 C3 ",%12,%13,%14,%15"
#define C5 C4 ",%16,%17,%18,%19"
#define C6 C5 ",%20,%21,%22,%23"
#define C7 C6 ",%24,%25,%26,%27"
#define T2 TILE_OF(0), TILE_OF(1)
#define T4 T2, TILE_OF(2), TILE_OF(3)
GROUP_MMA(1, "8", C1, "%4,%5,%6,%7", "%8", TILE_OF(0))
GROUP_MMA(2, "16", C2, "%8,%9,%10,%11", "%12", T2)
GROUP_MMA(3, "24", C3, "%12,%13,%14,%15", "%16", T2, TILE_OF(2))
GROUP_MMA(4, "32", C4, "%16,%17,%18,%19", "%20", T4)
GROUP_MMA(5, "40", C5, "%20,%21,%22,%23", "%24", T4, TILE_OF(4))
GROUP_MMA(6, "48", C6, "%24,%25,%26,%27", "%28", T4, TILE_OF(4), TILE_OF(5))
GROUP_MMA(7, "56", C7, "%28,%29,%30,%31", "%32", T4, TILE_OF(4), TILE_OF(5), TILE_OF(6))
template <int TILES> DEV void group_mma(float (&c)[TILES][4], const u32 (&a)[4], u64 b) {
  GroupMma<TILES>::add(c, a, b);
}

// The error is 2^-11 at most, less than the rounding of its operand to bfloat16.
DEV float tanh_(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEV float exp_(float x) { return __expf(x); }
DEV float rsqrt_(float x) { return rsqrtf(x); }
#endif

DEV float sigmoid(float x) { return 0.5f * tanh_(0.5f * x) + 0.5f; }
