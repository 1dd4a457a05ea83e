// Every algorithm, compiled for the instruction set IMGFAST_ISA whose vocabulary the including file
// chose, and the table that hands them out. No torch and no C++ library in here: an inline function
// of theirs compiled for this instruction set could be linked into code that runs on every
// processor.
#include "conv_backward_input-inl.h"
#include "conv_backward_weight-inl.h"
#include "conv_forward-inl.h"
#include "conv_gradient-inl.h"
#include "conv_rows-inl.h"
#include "conv_winograd_backward-inl.h"
#include "conv_winograd_forward-inl.h"
#include "cross_entropy-inl.h"
#include "dispatch.h"
#include "math-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

extern const KernelTable kTable;
const KernelTable kTable = {
    .conv_relu_pool =
        {
            .forward = {{conv_forward_pack_size, conv_forward_pack, conv_forward_scratch,
                         conv_forward_units, conv_forward},
                        {winograd_forward_pack_size, winograd_forward_pack,
                         winograd_forward_scratch, winograd_forward_units, winograd_forward}},
            .input = {{conv_backward_input_pack_size, conv_backward_input_pack,
                       conv_backward_input_scratch, count_pooled_rows, conv_backward_input},
                      {winograd_input_pack_size, winograd_input_pack, winograd_input_scratch,
                       winograd_input_units, winograd_input}},
            .weight = {{conv_backward_weight_partial_size, conv_backward_weight_scratch,
                        count_pooled_rows, conv_backward_weight, conv_backward_weight_reduce},
                       {winograd_weight_partial_size, winograd_weight_scratch,
                        winograd_weight_units, winograd_weight, winograd_weight_reduce}},
        },
    .cross_entropy =
        {
            .chunk_rows = cross_entropy_chunk_rows,
            .scratch = cross_entropy_scratch,
            .forward = cross_entropy_forward,
            .backward = cross_entropy_backward,
        },
};

}  // namespace imgfast::cpu::IMGFAST_ISA
