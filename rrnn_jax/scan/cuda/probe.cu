// Checks that a GPU's driver supports the instructions of the kernels, by their results.
#include "warp.h"

extern "C" __global__ void rrnn_probe(const u32* in, u32* out) {
  __shared__ __align__(16) u32 matrix[32];
  const int lane = thread_index();
  matrix[lane] = transpose(in[lane]);
  sync();
  u32 rows[2];  // Lanes 0 to 15 point at the rows of two matrices, here the same one.
  load_matrices(rows, matrix + lane % 8 * 4);
  float sum[4] = {0.f, 0.f, 0.f, tanh_(0.f)};
  const u32 left[4] = {rows[0], 0, 0, 0};
  mma(sum, left, 0, 0);
  out[lane] = transpose(rows[1]) + (u32)sum[0];
}
