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
    const int64_t own_heads = key.size(1), num_heads = keys.num_heads;
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
    const std::vector<cong::Tile> tiles = cong::tiles_of(rows, attention.group());
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
#pragma omp for schedule(dynamic, 4)
      for (int64_t task = 0; task < static_cast<int64_t>(tiles.size()) * num_heads; ++task)
        attention.attend(tiles[task / num_heads], task % num_heads);
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

// Token, size of the head set, log-prob under the mixture and under each network, float64 [rows, 3 + K].
at::Tensor draw_tokens(const c10::List<at::Tensor>& logits, const at::Tensor& head_log_lambda, const at::Tensor& numbers,
                       const at::Tensor& coordinates, const std::optional<at::Tensor>& seen,
                       const std::optional<at::Tensor>& banned, const std::optional<at::Tensor>& exempt) {
  const at::Tensor first = logits.get(0);
  const int64_t num_rows = first.size(0), num_words = first.size(1), num_networks = logits.size();
  TORCH_CHECK(numbers.is_contiguous() && coordinates.is_contiguous(), "numbers and coordinates are contiguous");
  TORCH_CHECK(numbers.size(1) == cong::kWeights + num_networks, "one weight per network");
  at::Tensor record = at::empty({num_rows, 3 + num_networks}, first.options().dtype(at::kDouble));
  const float* lambdas = head_log_lambda.const_data_ptr<float>();
  const float* rules = numbers.const_data_ptr<float>();
  const int64_t* where = coordinates.const_data_ptr<int64_t>();
  const cong::Flags is_seen(seen), is_banned(banned), is_exempt(exempt);
  double* const to = record.data_ptr<double>();
  by_type(first.scalar_type(), [&](auto zero) {
    std::vector<cong::Logits<decltype(zero)>> networks;
    for (const at::Tensor& each : logits) networks.emplace_back(each);
#pragma omp parallel num_threads(at::get_num_threads())
    {
      static thread_local cong::Head head;
#pragma omp for schedule(dynamic, 4)
      for (int64_t row = 0; row < num_rows; ++row) {
        const double number = cong::uniform(where[row], where[num_rows + row], where[2 * num_rows + row]);
        cong::draw_row(networks, row, num_words, lambdas[row], rules + row * numbers.size(1), number, is_seen.row(row),
                       is_banned.row(row), is_exempt.row(row), head, to + row * (3 + num_networks));
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
