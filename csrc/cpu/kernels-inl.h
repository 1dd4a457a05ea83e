// Every algorithm, compiled for the instruction set IMGFAST_ISA whose vocabulary the including file
// chose, and the table that hands them out. No torch and no C++ library in here: an inline function
// of theirs compiled for this instruction set could be linked into code that runs on every
// processor.
#include "causal_attention-inl.h"
#include "conv_backward_input-inl.h"
#include "conv_backward_weight-inl.h"
#include "conv_depthwise_backward-inl.h"
#include "conv_few_filters-inl.h"
#include "conv_forward-inl.h"
#include "conv_gradient-inl.h"
#include "conv_rows-inl.h"
#include "conv_winograd_backward-inl.h"
#include "conv_winograd_forward-inl.h"
#include "cross_entropy-inl.h"
#include "cross_entropy_tile-inl.h"
#include "dispatch.h"
#include "feed_forward-inl.h"
#include "math-inl.h"
#include "muon-inl.h"
#include "nearest_code-inl.h"
#include "neighbour_mix-inl.h"
#include "upsample_backward-inl.h"
#include "upsample_forward-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Packing in one unit.
template <class Args>
static int64_t one_unit(const Args&) {
  return 1;
}
template <class Args, void (*kPack)(const Args&)>
static void pack_at_once(const Args& a, int64_t, int64_t) {
  kPack(a);
}
template <void (*kPack)(const ConvForwardArgs&)>
static constexpr auto pack_forward = pack_at_once<ConvForwardArgs, kPack>;
template <void (*kPack)(const ConvBackwardArgs&)>
static constexpr auto pack_input = pack_at_once<ConvBackwardArgs, kPack>;

extern const KernelTable kTable;
const KernelTable kTable = {
    .conv_relu_pool =
        {
            .forward =
                {{conv_forward_pack_size<false>, one_unit, pack_forward<conv_forward_pack<false>>,
                  conv_forward_scratch<false>, conv_forward_units<false>, conv_forward<false>},
                 {winograd_forward_pack_size, winograd_forward_pack_units, winograd_forward_pack,
                  winograd_forward_scratch, winograd_forward_units, winograd_forward},
                 {conv_forward_pack_size<true>, one_unit, pack_forward<conv_forward_pack<true>>,
                  conv_forward_scratch<true>, conv_forward_units<true>, conv_forward<true>},
                 {few_forward_pack_size, one_unit, pack_forward<few_forward_pack>,
                  few_forward_scratch, few_forward_units, few_forward}},
            .input = {{conv_backward_input_pack_size, one_unit,
                       pack_input<conv_backward_input_pack>, conv_backward_input_scratch,
                       count_pooled_rows, conv_backward_input},
                      {winograd_input_pack_size, winograd_input_pack_units, winograd_input_pack,
                       winograd_input_scratch, winograd_input_units, winograd_input},
                      {depthwise_input_pack_size, one_unit, pack_input<depthwise_input_pack>,
                       depthwise_input_scratch, depthwise_input_units, depthwise_input},
                      {few_input_pack_size, one_unit, pack_input<few_input_pack>, few_input_scratch,
                       few_input_units, few_input}},
            .weight = {{conv_backward_weight_partial_size, conv_backward_weight_scratch,
                        count_pooled_rows, conv_backward_weight, conv_backward_weight_reduce},
                       {winograd_weight_partial_size, winograd_weight_scratch,
                        winograd_weight_units, winograd_weight, winograd_weight_reduce},
                       {depthwise_weight_partial_size, depthwise_weight_scratch,
                        depthwise_weight_units, depthwise_weight, depthwise_weight_reduce},
                       {few_weight_partial_size, few_weight_scratch, count_pooled_rows, few_weight,
                        few_weight_reduce}},
            .output_gradient = conv_output_gradient,
        },
    .cross_entropy =
        {
            .chunk_rows = cross_entropy_chunk_rows,
            .scratch = cross_entropy_scratch,
            .forward = cross_entropy_forward,
            .backward = cross_entropy_backward,
            .part_classes = cross_entropy_part_classes,
            .normalise_part = cross_entropy_normalise_part,
            .tile = cross_entropy_tile,
            .tile_gradient = cross_entropy_tile_gradient,
        },
    .causal_attention = {causal_attention_scratch, causal_attention_forward,
                         causal_attention_backward},
    .feed_forward = {feed_forward_scratch, feed_forward_forward, feed_forward_backward_rows,
                     feed_forward_backward_weights},
    .muon = {muon_scratch, muon_update},
    .nearest_code = {nearest_code_units, nearest_code_scratch, nearest_code_find},
    .neighbour_mix = {neighbour_mix_scratch, neighbour_mix_forward, neighbour_mix_backward,
                      neighbour_mix_reduce},
    .upsample_conv_relu =
        {
            .forward = {upsample_forward_pack_size, upsample_forward_pack_units,
                        upsample_forward_pack, upsample_forward_scratch, upsample_forward_units,
                        upsample_forward},
            .backward = {upsample_backward_size, upsample_backward_pack_units,
                         upsample_backward_pack, upsample_backward_size, upsample_backward_scratch,
                         upsample_backward_units, upsample_backward, upsample_backward_reduce},
        },
};

}  // namespace imgfast::cpu::IMGFAST_ISA
