// One table of programs: a plan has hundreds of nodes and a dozen programs.
#include "kernel_program.h"

#include <mutex>
#include <unordered_map>

namespace onerec
{
namespace
{

struct Table
{
    std::mutex mutex;
    std::unordered_map<std::string_view, std::weak_ptr<Carried const>> programs; // keys lie in the programs themselves
};

// Never destroyed: plugins may outlive the destructors of static objects.
Table& table()
{
    static Table& table = *new Table;
    return table;
}

// Takes a program out of the table when its last owner goes.
void drop(Carried const* carried)
{
    {
        std::lock_guard<std::mutex> const lock(table().mutex);
        auto const entry = table().programs.find(carried->bytes);
        if (entry != table().programs.end() && entry->first.data() == carried->bytes.data())
        {
            table().programs.erase(entry);
        }
    }
    delete carried;
}

} // namespace

std::shared_ptr<Carried const> carry(std::string_view bytes, std::string& error)
{
    std::shared_ptr<Carried const> carried; // goes after the lock: `drop` takes it too
    std::lock_guard<std::mutex> const lock(table().mutex);
    auto const known = table().programs.find(bytes);
    if (known != table().programs.end())
    {
        carried = known->second.lock();
        if (carried != nullptr)
        {
            return carried;
        }
        table().programs.erase(known); // its last owner is about to drop it
    }
    auto fresh = std::make_unique<Carried>();
    fresh->bytes = bytes;
    fresh->timingCacheId = "program-" + std::to_string(std::hash<std::string_view>()(bytes));
    if (!decode(fresh->bytes, fresh->program, error))
    {
        return nullptr;
    }
    carried = std::shared_ptr<Carried const>(fresh.release(), drop);
    table().programs.emplace(carried->bytes, carried);
    return carried;
}

} // namespace onerec
