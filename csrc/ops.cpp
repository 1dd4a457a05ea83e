// The schema of every operator, and nothing else. Kernels are registered beside their code, fakes
// and derivatives in imgfast/ops.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(imgfast, m) {
  // geometry: the order of imgfast::Geometry in csrc/conv_relu_pool.h; one list, since every
  // argument costs the call. codes: uint8 [N, PH, PW, K] if save_codes, else empty;
  // conv_relu_pool.h says what a code says.
  m.def(
      "conv_relu_pool(Tensor x, Tensor weight, Tensor? bias, int[] geometry, bool save_codes) "
      "-> (Tensor y, Tensor codes)");

  // A gradient that is not asked for comes back empty. y is needed where the activation's
  // derivative is read off it.
  m.def(
      "conv_relu_pool_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? y, Tensor? codes, "
      "int[] geometry, "
      "bool need_x, bool need_weight, bool need_bias) -> (Tensor grad_x, Tensor grad_weight, "
      "Tensor grad_bias)");

  // A filter of 3 x 3, padding 1, after nearest-neighbour upsampling by 2. winograd: bits of the
  // passes, as in csrc/conv_relu_pool.h; allow_tf32 is for GPUs. The gradients are
  // conv_relu_pool_backward's.
  m.def(
      "upsample_conv_relu(Tensor x, Tensor weight, Tensor? bias, int activation, int winograd, "
      "bool allow_tf32) -> Tensor y");
  m.def(
      "upsample_conv_relu_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? y, "
      "int activation, int winograd, bool allow_tf32, bool need_x, bool need_weight, "
      "bool need_bias) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");

  // The second target is that of a pair, of which lam is the first's share. reduction: 0 none, 1
  // mean, 2 sum. stats, of the compute type (double for float64, else float), keeps for backward
  // [maximum of every row, sum of exponentials of every row, what the means divide by: each
  // target's weights and rows]: shape [2 * rows + 4]; with `correct` follows for every row whether
  // its target has the first of the largest logits, 1 or 0. float_loss: the loss of bfloat16 and
  // float16 logits is float32, as under autocast.
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? other_target, Tensor? weight, "
      "int reduction, int ignore_index, float label_smoothing, float lam, float z_loss, "
      "bool float_loss, bool correct) -> (Tensor loss, Tensor stats)");

  // The gradient at input, in the strides of input where those are dense; grad_lse [rows] is the
  // gradient at the log-sum-exps.
  m.def(
      "cross_entropy_backward(Tensor grad_loss, Tensor? grad_lse, Tensor input, Tensor target, "
      "Tensor? other_target, Tensor? weight, Tensor stats, int reduction, int ignore_index, "
      "float label_smoothing, float lam, float z_loss) -> Tensor grad_input");

  // Both in one pass, of the gradient 1 at the loss, or at every row's loss.
  m.def(
      "cross_entropy_with_gradient(Tensor input, Tensor target, Tensor? other_target, "
      "Tensor? weight, int reduction, int ignore_index, float label_smoothing, float lam, "
      "float z_loss, bool float_loss, bool correct) "
      "-> (Tensor loss, Tensor stats, Tensor grad_input)");

  // Cross-entropy over classes [first_class, first_class + c) of num_classes, for
  // linear_cross_entropy. logits [n, c] are dense; target is int64 [n], checked and -1 for
  // rows that do not count, or probabilities [n, c]; weight [num_classes] and state [4, n] are of
  // the compute type. The first goes on with the state, the rows of which are maximum, sum, mass
  // and dot (csrc/cpu/cross_entropy_tile-inl.h); the second turns logits into the gradient, where
  // grad_rows [n] is the gradient at the losses.
  m.def(
      "cross_entropy_tile(Tensor logits, Tensor target, Tensor? weight, Tensor(a!) state, "
      "int first_class, int num_classes, float label_smoothing) -> ()");
  m.def(
      "cross_entropy_tile_gradient_(Tensor(a!) logits, Tensor target, Tensor? weight, "
      "Tensor state, Tensor grad_rows, int first_class, int num_classes, float label_smoothing) "
      "-> ()");

  // Causal self-attention of normalised queries and keys, csrc/cpu/causal_attention.h: qkv is dense
  // [N, T, 3, H, D], float32 or float64; out [N, T, H, D], logsumexp [N, H, T].
  m.def("causal_attention(Tensor qkv, float scale) -> (Tensor out, Tensor logsumexp)");
  m.def(
      "causal_attention_backward(Tensor grad_out, Tensor qkv, Tensor logsumexp, float scale) "
      "-> Tensor grad_qkv");

  // y = residual + h^2 down^T with h = x up^T where that exceeds the threshold, else 0; x is dense
  // [N, D], as y and residual, up [H, D], down [D, H], all float32 or float64; h is kept for
  // backward, in the tiles of csrc/cpu/feed_forward.h.
  m.def(
      "feed_forward(Tensor x, Tensor up, Tensor down, float threshold, Tensor? residual=None) "
      "-> (Tensor y, Tensor h)");
  m.def(
      "feed_forward_backward(Tensor grad_y, Tensor x, Tensor up, Tensor down, Tensor h) "
      "-> (Tensor grad_x, Tensor grad_up, Tensor grad_down)");

  // A step of Muon, csrc/cpu/muon.h: weights, of at least two dimensions, are matrices of a row for
  // each entry of the first one, which lie one behind the other; gradients and moving averages have
  // their strides. coefficients: three for each polynomial.
  m.def(
      "muon_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] averages, float momentum, "
      "float keep, float step, float[] coefficients) -> ()");

  // Number of the nearest row of book [K, D] for each row [N, D], csrc/cpu/nearest_code.h: float32
  // or float64 to int64 [N].
  m.def("nearest_code(Tensor rows, Tensor book) -> Tensor codes");

  // y[n][t] = m[n][t] + sum over j of weight[j] m[n][places[j][t]] with m = gain norm(x),
  // csrc/cpu/neighbour_mix.h: x is dense [N, T, D], float32 or float64, gain [D], weight [J, D],
  // places int64 [J, T], -1 for none. grad_too, of another use of x, is added to grad_x.
  m.def("neighbour_mix(Tensor x, Tensor gain, Tensor weight, Tensor places) -> Tensor y");
  m.def(
      "neighbour_mix_backward(Tensor grad_y, Tensor? grad_too, Tensor x, Tensor gain, "
      "Tensor weight, Tensor places) -> (Tensor grad_x, Tensor grad_gain, Tensor grad_weight)");

  // An exact copy of x by a kernel of this build; it exists where CUDA was built. See
  // csrc/cuda/cuda_probe.cuh.
  m.def("cuda_probe(Tensor x) -> Tensor");
}
