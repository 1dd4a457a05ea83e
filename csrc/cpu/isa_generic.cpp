#include "simd/generic.h"
#define IMGFAST_ISA generic
#include "kernels-inl.h"
