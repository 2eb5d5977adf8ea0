// How TensorRT's questions are answered from the program.
#include "kernel_program.h"

#include "log.h"
#include "network.h"

#include <array>
#include <limits>

using namespace nvinfer1;

namespace onerec
{
namespace
{

constexpr int32_t kOk = 0;
constexpr int32_t kFailed = 1;

int32_t refused(std::string const& error)
{
    logError(error);
    return kFailed;
}

using Shapes = std::array<Shape, kMaxTensors>;

Dims const& dimensions(PluginTensorDesc const& tensor)
{
    return tensor.dims;
}

Dims const& dimensions(DynamicPluginTensorDesc const& tensor)
{
    return tensor.desc.dims;
}

// The inputs' shapes, checked against what the program declares.
template <typename Tensor>
bool shapesOf(Program const& program, Tensor const* tensors, size_t count, Shapes& shapes, std::string& error)
{
    for (size_t i = 0; i < count && i < shapes.size(); ++i)
    {
        Dims const& dims = dimensions(tensors[i]);
        shapes[i] = {dims.nbDims, dims.d};
    }
    return accepts(program, shapes.data(), count, error);
}

} // namespace

KernelProgram::KernelProgram(std::shared_ptr<Carried const> carried, std::shared_ptr<Loaded const> loaded)
    : mCarried(std::move(carried))
    , mLoaded(std::move(loaded))
    , mField(kProgramField, mCarried->bytes.data(), PluginFieldType::kCHAR, static_cast<int32_t>(mCarried->bytes.size()))
    , mFields{1, &mField}
{
}

IPluginCapability* KernelProgram::getCapabilityInterface(PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    }
    return nullptr;
}

IPluginV3* KernelProgram::clone() noexcept
{
    return guarded<>(static_cast<IPluginV3*>(nullptr), [&]() -> IPluginV3* { return new KernelProgram(mCarried, mLoaded); });
}

char const* KernelProgram::getPluginName() const noexcept
{
    return kPluginName;
}

char const* KernelProgram::getPluginVersion() const noexcept
{
    return kPluginVersion;
}

char const* KernelProgram::getPluginNamespace() const noexcept
{
    return kPluginNamespace;
}

int32_t KernelProgram::getNbOutputs() const noexcept
{
    return static_cast<int32_t>(mCarried->program.outputs.size());
}

int32_t KernelProgram::configurePlugin(
    DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const*, int32_t) noexcept
{
    return guarded(kFailed, [&] {
        std::string error;
        Shapes shapes;
        return shapesOf(mCarried->program, in, nbInputs, shapes, error) ? kOk : refused(error);
    });
}

bool KernelProgram::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    Program const& program = mCarried->program;
    size_t const inputs = program.inputs.size();
    size_t const index = static_cast<size_t>(pos);
    if (static_cast<size_t>(nbInputs) != inputs || static_cast<size_t>(nbOutputs) != program.outputs.size())
    {
        return false;
    }
    DType const wanted = index < inputs ? program.inputs[index].dtype : program.outputs[index - inputs].dtype;
    return inOut[pos].desc.format == TensorFormat::kLINEAR && inOut[pos].desc.type == dataType(wanted);
}

int32_t KernelProgram::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded(kFailed, [&] {
        Program const& program = mCarried->program;
        if (static_cast<size_t>(nbInputs) != program.inputs.size() || static_cast<size_t>(nbOutputs) != program.outputs.size())
        {
            return refused("a node has another number of inputs or outputs than its kernel program");
        }
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            if (inputTypes[i] != dataType(program.inputs[i].dtype))
            {
                return refused("input " + std::to_string(i) + " of a node has another type than its kernel program takes");
            }
        }
        for (int32_t i = 0; i < nbOutputs; ++i)
        {
            outputTypes[i] = dataType(program.outputs[i].dtype);
        }
        return kOk;
    });
}

int32_t KernelProgram::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t, DimsExprs* outputs,
    int32_t nbOutputs, IExprBuilder& builder) noexcept
{
    return guarded(kFailed, [&] {
        Program const& program = mCarried->program;
        bool fits = static_cast<size_t>(nbInputs) == program.inputs.size() && static_cast<size_t>(nbOutputs) == program.outputs.size();
        for (int32_t i = 0; fits && i < nbInputs; ++i)
        {
            fits = static_cast<size_t>(inputs[i].nbDims) == program.inputs[i].dimensions.size();
        }
        if (!fits)
        {
            return refused("the inputs of a node have other ranks than its kernel program takes");
        }
        Symbols symbols{inputs, builder};
        for (int32_t i = 0; i < nbOutputs; ++i)
        {
            std::vector<Expression> const& dimensions = program.outputs[i].dimensions;
            outputs[i].nbDims = static_cast<int32_t>(dimensions.size());
            for (size_t axis = 0; axis < dimensions.size(); ++axis)
            {
                if (!run(dimensions[axis], symbols, outputs[i].d[axis]) || outputs[i].d[axis] == nullptr)
                {
                    return refused("TensorRT refuses an expression of an output's shape");
                }
            }
        }
        return kOk;
    });
}

size_t KernelProgram::getWorkspaceSize(
    DynamicPluginTensorDesc const* inputs, int32_t nbInputs, DynamicPluginTensorDesc const*, int32_t) const noexcept
{
    constexpr size_t kImpossible = std::numeric_limits<size_t>::max(); // there is no other way to say no
    return guarded(kImpossible, [&] {
        Program const& program = mCarried->program;
        std::string error;
        Shapes shapes;
        for (int32_t i = 0; i < nbInputs && static_cast<size_t>(i) < shapes.size(); ++i)
        {
            shapes[i] = {inputs[i].max.nbDims, inputs[i].max.d};
        }
        Layout layout;
        if (!accepts(program, shapes.data(), nbInputs, error) || !arrange(program, nullptr, shapes.data(), layout, error))
        {
            logError(error);
            return kImpossible;
        }
        return static_cast<size_t>(layout.bytes);
    });
}

char const* KernelProgram::getTimingCacheID() noexcept
{
    return mCarried->timingCacheId.c_str();
}

int32_t KernelProgram::onShapeChange(PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const*, int32_t) noexcept
{
    return guarded(kFailed, [&] {
        std::string error;
        Shapes shapes;
        return shapesOf(mCarried->program, in, nbInputs, shapes, error) ? kOk : refused(error);
    });
}

int32_t KernelProgram::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded(kFailed, [&] {
        Program const& program = mCarried->program;
        std::string error;
        Shapes shapes;
        if (mLoaded == nullptr) // TensorRT may time a plugin during a build, where no execution context holds it
        {
            mLoaded = loadAll(program, error);
            if (mLoaded == nullptr)
            {
                return refused(error);
            }
        }
        Memory const memory{inputs, outputs, static_cast<char*>(workspace)};
        auto const queue = reinterpret_cast<CUstream>(stream);
        bool const done = shapesOf(program, inputDesc, program.inputs.size(), shapes, error)
            && runAll(program, *mLoaded, shapes.data(), memory, queue, error);
        return done ? kOk : refused(error);
    });
}

IPluginV3* KernelProgram::attachToContext(IPluginResourceContext*) noexcept
{
    return guarded<>(static_cast<IPluginV3*>(nullptr), [&]() -> IPluginV3* {
        std::string error;
        std::shared_ptr<Loaded const> loaded = loadAll(mCarried->program, error);
        if (loaded == nullptr)
        {
            logError(error);
            return nullptr;
        }
        return new KernelProgram(mCarried, std::move(loaded));
    });
}

PluginFieldCollection const* KernelProgram::getFieldsToSerialize() noexcept
{
    return &mFields;
}

} // namespace onerec
