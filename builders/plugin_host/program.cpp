// Reads a launch program from bytes, and refuses what could not run.
#include "program.h"
#include "reader.h"

namespace onerec
{
namespace
{

constexpr std::string_view kMagic = "ONERECKP";
constexpr uint32_t kVersion = 3;

constexpr size_t kAnyCount = UINT32_MAX;

// What is known of a value on the stack: a constant, and whether it can only grow when dimensions grow.
struct Known
{
    bool constant;
    bool grows;
    int64_t value;
};

Known combined(Op op, Known const& first, Known const& second)
{
    bool const divides = op == Op::kFloorDivide || op == Op::kCeilDivide;
    bool const keeps = op == Op::kAdd || op == Op::kMultiply || op == Op::kMinimum || op == Op::kMaximum;
    bool const byConstant = second.constant && second.value > 0;
    return {false, divides ? first.grows && byConstant : keeps && first.grows && second.grows, 0};
}

class Decoder
{
public:
    Decoder(Reader& reader, Program& program)
        : mReader(reader)
        , mProgram(program)
    {
    }

    void program()
    {
        mReader.list("cubins", kAnyCount, [&] { cubin(); });
        mReader.list("kernels", kAnyCount, [&] { kernel(); });
        mReader.list("inputs", kMaxTensors, [&] { input(); });
        mReader.list("outputs", kMaxTensors, [&] { output(); });
        mReader.list("scratch buffers", kMaxTensors, [&] { buffer(); });
        mReader.list("variants", kAnyCount, [&] { variant(); });
        mReader.require(!mProgram.outputs.empty(), "it has no outputs");
        mReader.require(!mProgram.variants.empty(), "it has no variants");
        mReader.require(mReader.left() == 0, "it is longer than its parts");
    }

private:
    void cubin()
    {
        std::string_view const content = mReader.take(mReader.number<uint64_t>());
        mReader.require(!content.empty(), "a cubin is empty");
        mProgram.cubins.push_back(content);
    }

    void kernel()
    {
        Kernel kernel{};
        kernel.cubin = mReader.number<uint32_t>();
        kernel.entry = std::string(mReader.take(mReader.number<uint32_t>()));
        kernel.warps = mReader.number<uint32_t>();
        kernel.sharedBytes = mReader.number<uint32_t>();
        kernel.globalScratchBytes = mReader.number<uint32_t>();
        kernel.profileScratchBytes = mReader.number<uint32_t>();
        mReader.require(kernel.cubin < mProgram.cubins.size(), "a kernel names a cubin that is not there");
        mReader.require(!kernel.entry.empty() && kernel.entry.find('\0') == std::string::npos, "a kernel has no proper name");
        mReader.require(kernel.warps >= 1 && kernel.warps <= kMaxWarps, "a kernel has no possible number of warps");
        mReader.require(kernel.sharedBytes <= kMaxSharedBytes, "a kernel wants too much shared memory");
        uint8_t const dependent = mReader.number<uint8_t>();
        mReader.require(dependent <= 1, "a kernel neither waits for the launch before it nor does not");
        kernel.dependent = dependent == 1;
        mProgram.kernels.push_back(std::move(kernel));
    }

    DType dtype()
    {
        uint8_t const number = mReader.number<uint8_t>();
        mReader.require(number <= static_cast<uint8_t>(DType::kInt32), "a tensor has an unknown type");
        return static_cast<DType>(number);
    }

    void input()
    {
        Input input{dtype(), {}};
        mReader.list("dimensions", kMaxDimensions, [&] { input.dimensions.push_back(mReader.number<int64_t>()); });
        for (int64_t const dimension : input.dimensions)
        {
            mReader.require(dimension >= kAnyDimension, "an input has a negative dimension");
        }
        mProgram.inputs.push_back(std::move(input));
    }

    void output()
    {
        Output output{dtype(), {}};
        mReader.list("dimensions", kMaxDimensions, [&] { output.dimensions.push_back(expression()); });
        mProgram.outputs.push_back(std::move(output));
    }

    void buffer()
    {
        Buffer buffer{growing(true), false};
        uint8_t const clear = mReader.number<uint8_t>();
        mReader.require(clear <= 1, "a scratch buffer is neither cleared nor not");
        buffer.clear = clear == 1;
        mProgram.scratch.push_back(std::move(buffer));
    }

    void variant()
    {
        Variant variant{expression(), {}, std::vector<bool>(mProgram.scratch.size())};
        mReader.list("launches", kAnyCount, [&] { launch(variant); });
        mProgram.variants.push_back(std::move(variant));
    }

    void launch(Variant& variant)
    {
        Launch launch{};
        launch.kernel = mReader.number<uint32_t>();
        mReader.require(launch.kernel < mProgram.kernels.size(), "a launch names a kernel that is not there");
        if (!mReader.ok())
        {
            return;
        }
        Kernel const& kernel = mProgram.kernels[launch.kernel];
        bool const sizesScratch = kernel.globalScratchBytes > 0 || kernel.profileScratchBytes > 0;
        for (Expression& axis : launch.grid)
        {
            axis = growing(sizesScratch);
        }
        mReader.list("arguments", kMaxArguments, [&] { launch.arguments.push_back(argument(variant)); });
        variant.launches.push_back(std::move(launch));
    }

    Argument argument(Variant& variant)
    {
        Argument argument{};
        uint8_t const kind = mReader.number<uint8_t>();
        mReader.require(kind <= static_cast<uint8_t>(Argument::Kind::kFloat32), "an argument has an unknown kind");
        argument.kind = static_cast<Argument::Kind>(kind);
        switch (argument.kind)
        {
        case Argument::Kind::kInput: argument.index = index(mProgram.inputs.size()); break;
        case Argument::Kind::kOutput: argument.index = index(mProgram.outputs.size()); break;
        case Argument::Kind::kScratch:
            argument.index = index(mProgram.scratch.size());
            if (mReader.ok())
            {
                variant.uses[argument.index] = true;
            }
            break;
        case Argument::Kind::kInt32:
        case Argument::Kind::kInt64: argument.value = expression(); break;
        case Argument::Kind::kFloat32: argument.number = mReader.number<float>(); break;
        }
        return argument;
    }

    uint32_t index(size_t count)
    {
        uint32_t const index = mReader.number<uint32_t>();
        mReader.require(index < count, "an argument names a tensor that is not there");
        return index;
    }

    Expression expression()
    {
        return growing(false);
    }

    // An expression, checked by following what lies on the stack. One that sizes memory must be largest at the largest shape.
    Expression growing(bool mustGrow)
    {
        Expression expression;
        std::vector<Known> stack;
        mReader.list("instructions", kAnyCount, [&] { expression.push_back(instruction(stack)); });
        mReader.require(stack.size() == 1, "an expression has no single value");
        mReader.require(!mustGrow || (mReader.ok() && stack[0].grows), "a size may be largest at a smaller shape");
        return expression;
    }

    Instruction instruction(std::vector<Known>& stack)
    {
        Instruction instruction{};
        uint8_t const op = mReader.number<uint8_t>();
        mReader.require(op <= static_cast<uint8_t>(Op::kLess), "an expression has an unknown instruction");
        instruction.op = static_cast<Op>(op);
        if (instruction.op == Op::kConstant)
        {
            instruction.value = mReader.number<int64_t>();
            stack.push_back({true, instruction.value >= 0, instruction.value});
        }
        else if (instruction.op == Op::kDimension)
        {
            instruction.input = mReader.number<uint8_t>();
            instruction.axis = mReader.number<uint8_t>();
            bool const known = instruction.input < mProgram.inputs.size()
                && instruction.axis < mProgram.inputs[instruction.input].dimensions.size();
            mReader.require(known, "an expression names a dimension that is not there");
            stack.push_back({false, true, 0});
        }
        else if (stack.size() < 2)
        {
            mReader.fail("an operator of an expression lacks an operand");
        }
        else
        {
            Known const second = stack.back();
            stack.pop_back();
            stack.back() = combined(instruction.op, stack.back(), second);
        }
        mReader.require(stack.size() <= kMaxOperands, "an expression is nested too deeply");
        return instruction;
    }

    Reader& mReader;
    Program& mProgram;
};

} // namespace

bool decode(std::string_view bytes, Program& program, std::string& error)
{
    Reader header(bytes, error);
    if (header.take(kMagic.size()) != kMagic)
    {
        error = "a kernel program is damaged: it does not begin as one";
        return false;
    }
    uint32_t const version = header.number<uint32_t>();
    uint64_t const length = header.number<uint64_t>();
    if (header.ok() && version != kVersion)
    {
        error = "a kernel program has format " + std::to_string(version) + ", this host reads " + std::to_string(kVersion)
            + ": build the plan with the release that wrote the program";
        return false;
    }
    size_t const headerBytes = bytes.size() - header.left();
    bool const oneMore = bytes.size() == length + 1 && bytes.back() == '\0'; // added by TensorRT's ONNX parser
    header.require(length >= headerBytes && (bytes.size() == length || oneMore), "it has another length than it says");
    if (!header.ok())
    {
        return false;
    }
    Reader reader(bytes.substr(headerBytes, length - headerBytes), error);
    Decoder(reader, program).program();
    return reader.ok();
}

} // namespace onerec
