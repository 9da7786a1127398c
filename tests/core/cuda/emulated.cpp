// Both kernels behind two C functions; buffers come in the order of the kernels' parameters.
#include "forward.cu"

#include "backward.cu"

template <class Pass, class Args, class Shared>
static void run(void** buffers, int blocks, u64 order) {
  Args args;
  memcpy(&args, buffers, sizeof(Args));
  emulator::launch(blocks, THREADS, sizeof(Shared), order,
                   [&](void* shared) { Pass(args, *(Shared*)shared).run(); });
}
extern "C" void forward(void** buffers, int blocks, u64 order) {
  run<ForwardPass, ForwardArgs, ForwardShared>(buffers, blocks, order);
}
extern "C" void backward(void** buffers, int blocks, u64 order) {
  run<BackwardPass, BackwardArgs, BackwardShared>(buffers, blocks, order);
}
