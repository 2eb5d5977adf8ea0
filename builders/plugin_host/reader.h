// Reads numbers and lists from bytes that may be damaged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace onerec
{

// Reads forward. After the first failure everything reads as zero, so that only ends of lists need be checked.
class Reader
{
public:
    Reader(std::string_view bytes, std::string& error)
        : mBytes(bytes)
        , mError(error)
    {
    }

    bool ok() const
    {
        return mOk;
    }

    void fail(std::string const& what)
    {
        if (mOk)
        {
            mError = "a kernel program is damaged: " + what;
            mOk = false;
        }
    }

    void require(bool condition, char const* what)
    {
        if (!condition)
        {
            fail(what);
        }
    }

    size_t left() const
    {
        return mBytes.size();
    }

    std::string_view take(uint64_t size)
    {
        if (!mOk || size > mBytes.size())
        {
            fail("it ends too early");
            return {};
        }
        std::string_view const taken = mBytes.substr(0, size);
        mBytes.remove_prefix(size);
        return taken;
    }

    template <typename T>
    T number()
    {
        T value{};
        std::string_view const bytes = take(sizeof(T));
        if (mOk)
        {
            std::memcpy(&value, bytes.data(), sizeof(T)); // the format is little-endian, as every machine with such a GPU
        }
        return value;
    }

    // Calls `each` as often as the list has items; every item takes at least a byte, which bounds a damaged count.
    template <typename Each>
    void list(char const* what, size_t most, Each each)
    {
        uint32_t const count = number<uint32_t>();
        if (mOk && (count > most || count > mBytes.size()))
        {
            fail(std::string("a list has too many ") + what);
        }
        for (uint32_t i = 0; mOk && i < count; ++i)
        {
            each();
        }
    }

private:
    std::string_view mBytes;
    std::string& mError;
    bool mOk = true;
};

} // namespace onerec
