// The kernel whose synchronisation points the mutation runner's test deletes.
#include <simt/export.h>

#include <selftest_mutants.cuh>

SIMT_EXPORT int sum(const float* x, float* partial, int* arrived, float* total, int blocks,
                    int stages) {
  return imgfast::cuda::launch(sum_kernel, dim3(blocks), dim3(kSumThreads), 0, nullptr, x, partial,
                               arrived, total, stages);
}
