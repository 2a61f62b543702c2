// The kernels as operators of torch: tensors in, loops over rows and heads on torch's own threads.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "attention.h"
#include "decoder.h"
#include "drawing.h"

namespace {

template <typename Run>
void by_type(at::ScalarType type, const Run& run) {
  if (type == at::kFloat) {
    run(0.0f);
  } else {
    TORCH_CHECK(type == at::kBFloat16, "float32 or bfloat16, not ", type);
    run(c10::BFloat16(0.0f));
  }
}

// query [S, Q, N, D], key and value [S, H, N, D], pools [places, S * H, size, D], out [S, N, Q, D]
void paged_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& key_pool,
                     at::Tensor& value_pool, const at::Tensor& places, const at::Tensor& sequences,
                     const at::Tensor& positions, double scaling, int64_t window, double softcap, at::Tensor& out) {
  for (const at::Tensor& tensor : {query, key, value})
    TORCH_CHECK(tensor.dim() == 4 && tensor.stride(3) == 1, "query, key and value are [S, heads, N, D], rows contiguous");
  TORCH_CHECK(out.is_contiguous(), "the output is contiguous");
  const cong::Rows rows(places, sequences, positions);
  by_type(query.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const cong::Pool<T> keys(key_pool), values(value_pool);
    const auto view = [](const at::Tensor& tensor) {
      return cong::View<const T>{tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
    };
    const cong::View<T> to{out.data_ptr<T>(), out.stride(0), out.stride(2), out.stride(1)};
    const int64_t own_heads = key.size(1), num_heads = keys.num_heads, num_threads = at::get_num_threads();
    const cong::Attention<T, T, T> attention{rows,
                                             keys,
                                             values,
                                             view(query),
                                             to,
                                             query.size(1),
                                             own_heads,
                                             static_cast<float>(scaling),
                                             static_cast<float>(softcap),
                                             window};
    const std::vector<cong::Tile> tiles = cong::tiles_of(rows, attention.group(), num_heads, num_threads);
    cong::Shares shares(tiles.size(), num_threads);
    const cong::View<const T> new_keys = view(key), new_values = view(value);
#pragma omp parallel num_threads(at::get_num_threads())
    {
      // All rows' keys and values are written before any row attends: one may look at what another has just completed.
#pragma omp for
      for (int64_t task = 0; task < rows.count * num_heads; ++task) {
        const int64_t row = task / num_heads, head = task % num_heads;
        std::copy_n(new_keys.at(head / own_heads, head % own_heads, row), keys.width, keys.slot(rows, row, head));
        std::copy_n(new_values.at(head / own_heads, head % own_heads, row), values.width,
                    values.slot(rows, row, head));
      }
      shares.each([&](int64_t tile) { attention.attend(tiles[tile]); });
    }
  });
}

void decoder_layer(at::Tensor& hidden, const at::Tensor& cosine, const at::Tensor& sine,
                   const cong::MaybeTensors& weights, at::Tensor& key_pool, at::Tensor& value_pool,
                   const at::Tensor& places, const at::Tensor& sequences, const at::Tensor& positions, double scaling,
                   int64_t window, double eps) {
  for (const at::Tensor& tensor : {hidden, cosine, sine})
    TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == at::kFloat, "rows are contiguous and float32");
  const cong::Rows rows(places, sequences, positions);
  by_type(key_pool.scalar_type(), [&](auto zero) {
    cong::run_layer<decltype(zero)>(hidden, cosine, sine, weights, key_pool, value_pool, rows,
                                    static_cast<float>(scaling), window, static_cast<float>(eps));
  });
}

at::Tensor decoder_head(const at::Tensor& hidden, const at::Tensor& chosen, const at::Tensor& norm,
                        const at::Tensor& weight, const std::optional<at::Tensor>& bias, double eps) {
  TORCH_CHECK(hidden.is_contiguous() && hidden.scalar_type() == at::kFloat, "rows are contiguous and float32");
  at::Tensor logits;
  by_type(weight.scalar_type(), [&](auto zero) {
    logits = cong::run_head<decltype(zero)>(hidden, chosen, norm, weight, bias, static_cast<float>(eps));
  });
  return logits;
}

// Token, size of the head set, log-prob under the mixture and under each network, float64 [rows, 3 + K]; a size of 0 says
// that logits are not numbers, and then nothing else is said. `coordinates` are seeds, sample indices and positions.
at::Tensor draw_tokens(at::TensorList logits, const at::Tensor& head_log_lambda, const at::Tensor& numbers,
                       const at::Tensor& coordinates, const std::optional<at::Tensor>& seen,
                       const std::optional<at::Tensor>& banned, const std::optional<at::Tensor>& exempt) {
  const int64_t num_networks = logits.size(), num_rows = logits[0].size(0), num_words = logits[0].size(1);
  const int64_t num_numbers = cong::DrawRule::kNumbers + num_networks;
  for (const at::Tensor& each : logits) {
    TORCH_CHECK(each.scalar_type() == logits[0].scalar_type() && each.stride(1) == 1, "words lie side by side");
    TORCH_CHECK(each.size(0) == num_rows && each.size(1) == num_words, "all networks have the same rows and words");
  }
  for (const at::Tensor& each : {head_log_lambda, numbers, coordinates})
    TORCH_CHECK(each.is_contiguous(), "thresholds, numbers and coordinates are contiguous");
  TORCH_CHECK(head_log_lambda.size(0) == num_rows && numbers.size(0) == num_rows, "one threshold and rule per row");
  TORCH_CHECK(numbers.size(1) == num_numbers, "a rule has ", cong::DrawRule::kNumbers, " numbers and one weight per network");
  TORCH_CHECK(coordinates.size(0) == 3 && coordinates.size(1) == num_rows, "three coordinates per row");
  const auto flags_of = [&](const std::optional<at::Tensor>& flags) -> const bool* {
    TORCH_CHECK(!flags || (flags->is_contiguous() && flags->size(0) == num_rows && flags->size(1) == num_words),
                "flags are contiguous, one per row and word");
    return flags ? flags->const_data_ptr<bool>() : nullptr;
  };
  const bool *is_seen = flags_of(seen), *is_banned = flags_of(banned), *is_exempt = flags_of(exempt);
  const float *lambdas = head_log_lambda.const_data_ptr<float>(), *rules = numbers.const_data_ptr<float>();
  const int64_t* where = coordinates.const_data_ptr<int64_t>();
  at::Tensor record = at::empty({num_rows, 3 + num_networks}, logits[0].options().dtype(at::kDouble));
  double* const to = record.data_ptr<double>();
  by_type(logits[0].scalar_type(), [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel num_threads(at::get_num_threads())
    {
      cong::RowDrawer<T> drawer(num_networks, num_words);
      std::vector<const T*> rows(num_networks);
#pragma omp for schedule(dynamic)
      for (int64_t row = 0; row < num_rows; ++row) {
        for (int64_t k = 0; k < num_networks; ++k) rows[k] = logits[k].const_data_ptr<T>() + row * logits[k].stride(0);
        const auto of_row = [&](const bool* flags) { return flags ? flags + row * num_words : nullptr; };
        const cong::Marks marks{of_row(is_seen), of_row(is_banned), of_row(is_exempt)};
        const double number = cong::uniform(where[row], where[num_rows + row], where[2 * num_rows + row]);
        const cong::DrawRule rule(rules + row * num_numbers);
        drawer.draw(rows.data(), lambdas[row], rule, number, marks, to + row * (3 + num_networks));
      }
    }
  });
  return record;
}

}  // namespace

TORCH_LIBRARY(cong, library) {
  library.def(
      "paged_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) key_pool, Tensor(b!) value_pool, Tensor places, "
      "Tensor sequences, Tensor positions, float scaling, int window, float softcap, Tensor(c!) out) -> ()");
  library.def(
      "decoder_layer(Tensor(a!) hidden, Tensor cosine, Tensor sine, Tensor?[] weights, Tensor(b!) key_pool, "
      "Tensor(c!) value_pool, Tensor places, Tensor sequences, Tensor positions, float scaling, int window, float eps) "
      "-> ()");
  library.def("decoder_head(Tensor hidden, Tensor chosen, Tensor norm, Tensor weight, Tensor? bias, float eps) -> Tensor");
  library.def(
      "draw_tokens(Tensor[] logits, Tensor head_log_lambda, Tensor numbers, Tensor coordinates, Tensor? seen, "
      "Tensor? banned, Tensor? exempt) -> Tensor");
}

TORCH_LIBRARY_IMPL(cong, CPU, library) {
  library.impl("paged_attention", &paged_attention);
  library.impl("decoder_layer", &decoder_layer);
  library.impl("decoder_head", &decoder_head);
  library.impl("draw_tokens", &draw_tokens);
}
