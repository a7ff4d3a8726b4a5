// What C++ asks of CUDA wherever it touches a (fake) CUDA tensor: a device guard that does nothing,
// hooks that say that there are devices, and which attention they have. torch's CPU build has none.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;
constexpr c10::DeviceIndex COUNT = 8;
const c10::Device FIRST(CUDA, 0);

struct NoOpGuard : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return FIRST; }
  c10::Device getDevice() const override { return FIRST; }
  c10::DeviceIndex deviceCount() const noexcept override { return COUNT; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, FIRST); }
};

c10::impl::DeviceGuardImplRegistrar registrar(CUDA, new NoOpGuard());

// As sdp_utils.cpp of the CUDA build decides for an H100, for the shapes that the tests have.
int64_t choose_attention(
    const at::Tensor& query, const at::Tensor&, const at::Tensor&,
    const std::optional<at::Tensor>& mask, double, bool, std::optional<double>, bool) {
  const bool is_half = query.scalar_type() == at::kHalf || query.scalar_type() == at::kBFloat16;
  auto chosen = sdp::SDPBackend::math;
  if (is_half && !mask && query.sym_size(-1) <= 256 && at::globalContext().userEnabledFlashSDP()) {
    chosen = sdp::SDPBackend::flash_attention;
  } else if (at::globalContext().userEnabledMemEfficientSDP()) {
    chosen = sdp::SDPBackend::efficient_attention;
  }
  return static_cast<int64_t>(chosen);
}

}  // namespace

namespace at::native {

REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &choose_attention);

}  // namespace at::native

namespace at {

struct CUDAHooks : CUDAHooksInterface {  // torch asks the registry for this name
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  int getNumGPUs() const override { return COUNT; }
  DeviceIndex deviceCount() const override { return COUNT; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
};

REGISTER_CUDA_HOOKS(CUDAHooks);

}  // namespace at
