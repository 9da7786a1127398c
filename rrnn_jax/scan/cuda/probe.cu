// Checks that a GPU's driver supports the instructions of the kernels, by their results; with
// CLUSTER > 1 those of clusters.
#include "warp.h"

extern "C" __global__ void IN_CLUSTER rrnn_probe(const u32* in, u32* out) {
  const int lane = local_index();
#if CLUSTER > 1
  __shared__ u32 words[32 * CLUSTER];
  __shared__ Barrier barrier;
  if (lane == 0) init(&barrier);
  cluster_sync();
  send(words + rank() * 32 + lane, in[lane] * (rank() + 1), &barrier);
  if (lane == 0) expect(&barrier, sizeof(words));
  wait_for(&barrier, 0);
  u32 sum = 0;
  for (int r = 0; r < CLUSTER; r++) sum += words[r * 32 + lane];
  out[thread_index()] = sum;
  cluster_sync();
#else
  __shared__ __align__(16) u32 copied[32], matrix[32];
  if (lane < 8) copy_async((V4*)copied + lane, (const V4*)in + lane);
  wait_copies<0>();
  sync();
  matrix[lane] = transpose(copied[lane]);
  sync();
  u32 rows[2];  // Lanes 0 to 15 point at the rows of two matrices, here the same one.
  load_matrices(rows, matrix + lane % 8 * 4);
  float sum[4] = {0.f, 0.f, 0.f, tanh_(0.f)};
  const u32 left[4] = {rows[0], 0, 0, 0};
  mma(sum, left, 0, 0);
  out[lane] = transpose(rows[1]) + (u32)sum[0];
#endif
}
