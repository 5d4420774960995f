// One training step of small convolutional networks on a CPU: forward, loss, backward, one network after the other.
//
// Images go through in groups of as many as a vector has lanes (16 floats), innermost in memory, so that every
// operation is one on whole vectors. A feature map is (channel, row, column, lane) with a border of zeros, which
// makes the 3x3 convolution a sum of shifted maps without special cases. The maps of a network and a group stay in
// the second-level cache, and are used again by the next. Activations and their slopes are computed on a row that
// a convolution has just written; the slopes' map then becomes the map of gradients, in place.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

template <typename T> struct Wide {
  static constexpr int lanes = 64 / sizeof(T);
  typedef T V __attribute__((vector_size(64)));
};
template <typename T> using Vec = typename Wide<T>::V;

enum Kind { CONVOLUTION, POOL, DENSE };
enum Function { IDENTITY, RELU, TANH, SIGMOID, ARCTAN, SOFTSIGN };

// For CONVOLUTION and POOL `in` is the side of the input; weights and biases are offsets into a network's, or -1.
// The function is gain f(x / alpha).
struct Layer { int64_t kind, function, in, out, weights, biases; double alpha, gain; };

struct Images { const uint8_t* pixels; int64_t channel, pixel; };  // and the strides of both

template <typename T, typename F> inline Vec<T> each(Vec<T> x, F f) {
  for (int k = 0; k < Wide<T>::lanes; k++) x[k] = f(x[k]);
  return x;
}

// e^x and e^x - 1 of x <= 0, which is exact to the last bits near 0 as well.
template <typename T> inline void exponential(Vec<T> x, Vec<T>& e, Vec<T>& less_one) {
  if constexpr (std::is_same_v<T, double>) {
    e = each<T>(x, [](T v) { return std::exp(v); });
    less_one = each<T>(x, [](T v) { return std::expm1(v); });
  } else {
    typedef int32_t I __attribute__((vector_size(64)));
    const Vec<T> low = x > -88.02f ? x : x * 0 - 88.02f;  // where 2^n becomes 0
    const Vec<T> n = (low * 1.44269504f + 12582912.f) - 12582912.f;
    const Vec<T> r = (low - n * 0.693359375f) + n * 2.12194440e-4f;
    const Vec<T> p = ((((r * 1.9875691500e-4f + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
                      + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    const Vec<T> q = p * (r * r) + r, power = (Vec<T>)((__builtin_convertvector(n, I) + 127) << 23);
    e = q * power + power;
    less_one = q * power + (power - 1);
  }
}

// arctan of m >= 0: z + z^3 p(z^2) of z = min(m, 1 / m).
template <typename T> inline Vec<T> arctan(Vec<T> m) {
  if constexpr (std::is_same_v<T, double>) return each<T>(m, [](T v) { return std::atan(v); });
  else {
    const Vec<T> z = m > 1 ? 1 / m : m, w = z * z;
    Vec<T> p = w * 0.0029206884f - 0.016367912f;
    for (T c : {0.043211836f, -0.075522125f, 0.10666004f, -0.14211056f, 0.19993773f, -0.33333153f}) p = p * w + c;
    const Vec<T> near = z + z * (w * p);
    return m > 1 ? 1.57079633f - near : near;
  }
}

// f(u) and f'(u).
template <typename T, int F> inline void evaluate(Vec<T> u, Vec<T>& y, Vec<T>& slope) {
  const Vec<T> zero = Vec<T>{}, one = zero + 1, m = u < 0 ? -u : u;
  Vec<T> e, less_one, size;
  if constexpr (F == IDENTITY) y = u, slope = one;
  else if constexpr (F == RELU) y = u > 0 ? u : zero, slope = u > 0 ? one : zero;
  else if constexpr (F == SIGMOID) {
    exponential<T>(-m, e, less_one);
    const Vec<T> z = one / (one + e);
    y = u < 0 ? e * z : z;
    slope = (one - y) * y;
  } else {
    if constexpr (F == TANH) {
      exponential<T>(-m - m, e, less_one);
      const Vec<T> z = one / (2 + less_one);
      size = m < T(0.3) ? -less_one * z : one - 2 * e * z;
      slope = one - size * size;
    } else if constexpr (F == ARCTAN) {
      size = arctan<T>(m);
      slope = one / (one + u * u);
    } else {
      const Vec<T> z = one / (one + m);
      size = m > T(1e18) ? one : m * z;
      slope = z * z;
    }
    y = u < 0 ? -size : size;
  }
}

template <typename T, int F> void activate_all(T alpha, T gain, int64_t count, Vec<T>* y, Vec<T>* slope) {
  const T inverse = 1 / alpha, share = gain / alpha;
  for (int64_t k = 0; k < count; k++) {
    evaluate<T, F>(y[k] * inverse, y[k], slope[k]);
    y[k] = y[k] * gain;
    slope[k] = slope[k] * share;
  }
}

template <typename T> void activate(const Layer& a, int64_t count, Vec<T>* y, Vec<T>* slope) {
  switch (a.function) {
    case IDENTITY: return activate_all<T, IDENTITY>(1, 1, count, y, slope);
    case RELU: return activate_all<T, RELU>(1, 1, count, y, slope);
    case TANH: return activate_all<T, TANH>(a.alpha, a.gain, count, y, slope);
    case SIGMOID: return activate_all<T, SIGMOID>(a.alpha, a.gain, count, y, slope);
    case ARCTAN: return activate_all<T, ARCTAN>(a.alpha, a.gain, count, y, slope);
    case SOFTSIGN: return activate_all<T, SOFTSIGN>(a.alpha, a.gain, count, y, slope);
  }
}

template <typename T> inline Vec<T> times(Vec<T> g, Vec<T> slope) { return slope == 0 ? g * 0 : g * slope; }

template <typename T> struct Network {
  using V = Vec<T>;
  const Layer* layers;
  int count;
  const T* weights;
  T* gradients;
  V* memory;             // all maps, borders zero
  std::vector<V*> values, slopes;  // of layer l's input [l] and output [l + 1]

  void arrange() {
    V* next = memory;
    values.assign(count + 1, nullptr);
    slopes.assign(count + 1, nullptr);
    for (int l = 0; l <= count; l++) {
      int64_t size = l < count ? size_of(layers[l]) : layers[l - 1].out;
      values[l] = next; slopes[l] = next + size; next += 2 * size;
    }
  }
  static int64_t size_of(const Layer& a) { return a.kind == DENSE ? a.in : 3 * (a.in + 2) * (a.in + 2); }

  // Four columns at a time: 12 sums stay in registers. With BACK the result is multiplied by what y held.
  template <bool BACK> static void convolve_row(const V* x, int64_t P, const T* w, const T* bias, V* y, bool scale) {
    const int64_t plane = P * P;
    for (int64_t v = 0; v + 2 < P; v += 4) {
      V sum[3][4];
#pragma GCC unroll 3
      for (int o = 0; o < 3; o++)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) sum[o][c] = V{} + (BACK ? T(0) : bias[o]);
      for (int i = 0; i < 3; i++)
        for (int dy = 0; dy < 3; dy++) {
          const V* r = x + i * plane + dy * P + v;
          const T* k = w + (i * 3 + dy) * 9;
#pragma GCC unroll 3
          for (int dx = 0; dx < 3; dx++)
#pragma GCC unroll 3
            for (int o = 0; o < 3; o++)
#pragma GCC unroll 4
              for (int c = 0; c < 4; c++) sum[o][c] += r[dx + c] * k[dx * 3 + o];
        }
#pragma GCC unroll 3
      for (int o = 0; o < 3; o++)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
          V* at = y + o * plane + v + c;
          *at = BACK && scale ? times<T>(sum[o][c], *at) : sum[o][c];
        }
    }
  }

  void forward(int l) {
    const Layer& a = layers[l];
    const T* w = weights + a.weights;
    const T none[3] = {};
    const T* bias = a.biases < 0 ? none : weights + a.biases;
    const V* x = values[l];
    V *y = values[l + 1], *s = slopes[l + 1];
    const int64_t H = a.in, P = H + 2, plane = P * P;
    if (a.kind == DENSE) {
      for (int64_t o = 0; o < a.out; o++) {
        V sum = V{} + (a.biases < 0 ? T(0) : bias[o]);
        for (int64_t i = 0; i < a.in; i++) sum += x[i] * w[o * a.in + i];
        y[o] = sum;
      }
      activate<T>(a, a.out, y, s);
    } else if (a.kind == CONVOLUTION) {
      T turned[81];  // (i, dy, dx, o)
      for (int o = 0; o < 3; o++) for (int k = 0; k < 27; k++) turned[k * 3 + o] = w[o * 27 + k];
      for (int64_t h = 0; h < H; h++) {
        const int64_t at = (h + 1) * P + 1;
        convolve_row<false>(x + h * P, P, turned, bias, y + at, false);
        for (int o = 0; o < 3; o++) activate<T>(a, H, y + at + o * plane, s + at + o * plane);
      }
    } else {
      const bool last = l + 1 == count || layers[l + 1].kind == DENSE;  // which takes features without borders
      const int64_t half = H / 2, Q = last ? half : half + 2, border = last ? 0 : Q + 1;
      for (int c = 0; c < 3; c++)
        for (int64_t h = 0; h < half; h++)
          for (int64_t v = 0; v < half; v++) {
            const V* r = x + c * plane + (2 * h + 1) * P + 2 * v + 1;
            const V top = r[0] > r[1] ? r[0] : r[1], low = r[P] > r[P + 1] ? r[P] : r[P + 1];
            y[(c * Q + h) * Q + v + border] = top > low ? top : low;
          }
    }
  }

  // From the gradients in slopes[l + 1] to those in slopes[l], which are multiplied by the slopes there.
  void backward(int l) {
    const Layer& a = layers[l];
    const T* w = weights + a.weights;
    const V *x = values[l], *g = slopes[l + 1];
    V* s = slopes[l];
    const int64_t H = a.in, P = H + 2, plane = P * P;
    const bool scale = l > 0 && layers[l - 1].kind != POOL;
    if (a.kind == DENSE) {
      for (int64_t o = 0; o < a.out; o++) {
        if (a.biases >= 0) gradients[a.biases + o] += sum_of(g[o]);
        for (int64_t i = 0; i < a.in; i++) gradients[a.weights + o * a.in + i] += sum_of(g[o] * x[i]);
      }
      for (int64_t i = 0; i < a.in; i++) {
        V sum = V{};
        for (int64_t o = 0; o < a.out; o++) sum += g[o] * w[o * a.in + i];
        s[i] = scale ? times<T>(sum, s[i]) : sum;
      }
    } else if (a.kind == CONVOLUTION) {
      weights_gradient(a, x, g);
      if (l == 0) return;
      T turned[81];  // (o, 2 - dy, 2 - dx, i)
      for (int o = 0; o < 3; o++) for (int i = 0; i < 3; i++) for (int k = 0; k < 9; k++)
        turned[(o * 9 + 8 - k) * 3 + i] = w[(o * 3 + i) * 9 + k];
      for (int64_t h = 0; h < H; h++)
        convolve_row<true>(g + h * P, P, turned, nullptr, s + (h + 1) * P + 1, scale);
    } else {
      const bool last = l + 1 == count || layers[l + 1].kind == DENSE;
      const int64_t half = H / 2, Q = last ? half : half + 2, border = last ? 0 : Q + 1;
      for (int c = 0; c < 3; c++)
        for (int64_t h = 0; h < half; h++)
          for (int64_t v = 0; v < half; v++) {  // to the first of the largest
            const int64_t from = (c * Q + h) * Q + v + border, at = c * plane + (2 * h + 1) * P + 2 * v + 1;
            const V top = values[l + 1][from];
            V left = g[from];
            for (int64_t k : {at, at + 1, at + P, at + P + 1}) {
              const V mine = x[k] == top ? left : left * 0;
              left -= mine;
              s[k] = scale ? times<T>(mine, s[k]) : mine;
            }
          }
    }
  }

  // Nine sums stay in registers along a row, for each input channel and dy.
  void weights_gradient(const Layer& a, const V* x, const V* g) {
    const int64_t H = a.in, P = H + 2, plane = P * P;
    V sums[9][9] = {}, biases[3] = {};
    for (int64_t h = 0; h < H; h++) {
      const V* gr = g + (h + 1) * P + 1;
      for (int k = 0; k < 9; k++) {
        const V* r = x + (k / 3) * plane + (h + k % 3) * P;
        V t[9];
#pragma GCC unroll 9
        for (int j = 0; j < 9; j++) t[j] = sums[k][j];
#pragma GCC unroll 4
        for (int64_t v = 0; v < H; v++)
#pragma GCC unroll 9
          for (int j = 0; j < 9; j++) t[j] += gr[(j / 3) * plane + v] * r[v + j % 3];
#pragma GCC unroll 9
        for (int j = 0; j < 9; j++) sums[k][j] = t[j];
      }
      if (a.biases >= 0)
        for (int o = 0; o < 3; o++) for (int64_t v = 0; v < H; v++) biases[o] += gr[o * plane + v];
    }
    for (int k = 0; k < 9; k++) for (int j = 0; j < 9; j++)
      gradients[a.weights + (j / 3) * 27 + k * 3 + j % 3] += sum_of(sums[k][j]);
    if (a.biases >= 0) for (int o = 0; o < 3; o++) gradients[a.biases + o] += sum_of(biases[o]);
  }
  static T sum_of(V x) {
    T sum = 0;
    for (int k = 0; k < Wide<T>::lanes; k++) sum += x[k];
    return sum;
  }

  void load(const Images& images, const int64_t* order, int64_t there, const T* levels) {
    constexpr int64_t side = 32, P = side + 2;
    const uint8_t* image[Wide<T>::lanes];
    for (int k = 0; k < Wide<T>::lanes; k++) image[k] = images.pixels + 3 * side * side * order[k < there ? k : 0];
    for (int64_t c = 0; c < 3; c++)
      for (int64_t h = 0; h < side; h++)
        for (int64_t v = 0; v < side; v++) {
          V& pixel = values[0][(c * P + h + 1) * P + v + 1];
          const int64_t at = c * images.channel + (h * side + v) * images.pixel;
          for (int k = 0; k < Wide<T>::lanes; k++) pixel[k] = levels[c * 256 + image[k][at]];
        }
  }

  // Softmax and cross-entropy, whose gradient becomes that of the last layer's output.
  void judge(const int64_t* labels, const int64_t* order, int64_t there, T share, double& loss, int64_t& hits) {
    const int64_t classes = layers[count - 1].out;
    const V* x = values[count];
    V* g = slopes[count];
    V top = x[0], total = V{};
    for (int64_t c = 1; c < classes; c++) top = x[c] > top ? x[c] : top;
    for (int64_t c = 0; c < classes; c++) {
      V ignored;
      exponential<T>(x[c] - top, g[c], ignored);
      total += g[c];
    }
    for (int64_t c = 0; c < classes; c++) g[c] = g[c] / total * share;
    for (int64_t k = 0; k < Wide<T>::lanes; k++) {
      if (k >= there) { for (int64_t c = 0; c < classes; c++) g[c][k] = 0; continue; }
      const int64_t label = labels[order[k]];
      int64_t first = 0;
      while (first + 1 < classes && x[first][k] != top[k]) first++;
      hits += first == label;
      loss += std::log(total[k]) + top[k] - x[label][k];
      g[label][k] -= share;
    }
  }
};

}  // namespace

template <typename T> struct Task {
  Images images;
  const int64_t *labels, *order;
  int64_t order_stride, batch;
  const T* levels;
  const Layer* layers;
  int64_t count;
  const T* weights;
  T* gradients;  // null: no backward pass
  int64_t size, seeds;
  T* memory;  // the maps of as many networks as there are threads
  int64_t memory_size, threads;
  double* losses;
  int64_t* hits;
};

template <typename T> static void work(const Task<T>& a, int64_t thread) {
  Network<T> network{a.layers, (int)a.count, nullptr, nullptr, (Vec<T>*)(a.memory + thread * a.memory_size), {}, {}};
  network.arrange();
  for (int64_t s = thread; s < a.seeds; s += a.threads) {
    network.weights = a.weights + s * a.size;
    if (a.gradients) {
      network.gradients = a.gradients + s * a.size;
      std::memset(network.gradients, 0, a.size * sizeof(T));
    }
    a.losses[s] = a.hits[s] = 0;
    for (int64_t b = 0; b < a.batch; b += Wide<T>::lanes) {
      const int64_t* chosen = a.order + s * a.order_stride + b;
      const int64_t there = a.batch - b < Wide<T>::lanes ? a.batch - b : Wide<T>::lanes;
      network.load(a.images, chosen, there, a.levels);
      for (int l = 0; l < a.count; l++) network.forward(l);
      network.judge(a.labels, chosen, there, T(1) / a.batch, a.losses[s], a.hits[s]);
      if (a.gradients) for (int l = a.count - 1; l >= 0; l--) network.backward(l);
    }
    a.losses[s] /= a.batch;
  }
}

template <typename T> static void step(const Task<T>& task) {
  std::vector<std::thread> others;
  for (int64_t t = 1; t < task.threads; t++) others.emplace_back([&task, t] { work(task, t); });
  work(task, 0);
  for (auto& thread : others) thread.join();
}

extern "C" void step_float(const Task<float>* task) { step(*task); }
extern "C" void step_double(const Task<double>* task) { step(*task); }
