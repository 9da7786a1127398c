// Both kernels behind two C functions; buffers come in the order of the kernels' parameters.
#include "forward.cu"

#include "backward.cu"

template <class Pass, class Args, class Shared>
static const char* run(void** buffers, int blocks, u64 order) {
  Args args;
  memcpy(&args, buffers, sizeof(Args));
  return emulator::launch(blocks, LOCAL_THREADS, sizeof(Shared), order,
                          [&](void* shared) { Pass(args, *(Shared*)shared).run(); });
}
extern "C" const char* forward(void** buffers, int blocks, u64 order) {
  return run<ForwardPass, ForwardArgs, ForwardShared>(buffers, blocks, order);
}
extern "C" const char* backward(void** buffers, int blocks, u64 order) {
  return run<BackwardPass, BackwardArgs, BackwardShared>(buffers, blocks, order);
}
