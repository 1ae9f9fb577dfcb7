// PTX as nvcc writes it → instructions whose operands are all registers.
#include "ptx.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace ptx {
namespace {

struct Reader {
    Reader(const std::string &text, const std::string &file) : text(text), file(file) {}
    const std::string &text, &file;
    size_t at = 0;
    uint32_t line = 1;
    Module module;

    // Of the function that is read:
    Function *function = nullptr;
    struct Scope {
        std::map<std::string, Slot> slots;
        std::map<std::string, uint32_t> ranges; // %r<9>: %r0 to %r8
    };
    std::vector<Scope> scopes;
    std::vector<Slot> passed; // parameters of functions, which are registers here
    std::map<std::string, uint32_t> labels;
    std::vector<std::pair<uint32_t, std::string>> jumps;
    std::map<uint64_t, Slot> constants;
    std::map<std::string, uint32_t> shared; // where each variable is
    Slot dynamic = NONE;                    // the address after them, once it is needed
    // Of the module, for the kernels that name it; of no bytes: dynamic.
    struct Variable {
        std::string name;
        uint32_t align = 1, bytes = 0;
    };
    std::map<std::string, Variable> of_module;

    [[noreturn]] void fail(const std::string &what) { ptx::fail("%s:%u: %s", file.c_str(), line, what.c_str()); }

    // ---- Words ----------------------------------------------------------------------------------------------------------

    void step() {
        if (text[at++] == '\n') line++;
    }
    void skip_space() {
        while (at < text.size()) {
            if (isspace(static_cast<unsigned char>(text[at]))) step();
            else if (text.compare(at, 2, "//") == 0) while (at < text.size() && text[at] != '\n') step();
            else break;
        }
    }
    bool is_over() {
        skip_space();
        return at == text.size();
    }
    char peek() {
        skip_space();
        return at < text.size() ? text[at] : '\0';
    }
    bool take(char c) {
        if (peek() != c) return false;
        step();
        return true;
    }
    void want(char c) {
        if (!take(c)) fail(std::string("expected ") + c);
    }
    static bool is_of_word(char c) { return isalnum(static_cast<unsigned char>(c)) || strchr("_$%.", c) != nullptr; }
    /// A name, a number, a directive or an opcode with all that follows its dots.
    std::string word() {
        skip_space();
        const size_t from = at;
        while (at < text.size() && is_of_word(text[at])) at++;
        if (at == from) fail(std::string("unexpected ") + text[at]);
        return text.substr(from, at - from);
    }
    uint32_t number() { return uint32_t(strtoul(word().c_str(), nullptr, 0)); }
    static std::vector<std::string> split(const std::string &word) {
        std::vector<std::string> parts;
        size_t from = 0;
        for (size_t dot; (dot = word.find('.', from)) != std::string::npos; from = dot + 1) parts.push_back(word.substr(from, dot - from));
        parts.push_back(word.substr(from));
        return parts;
    }
    static uint32_t bytes_of(const std::string &type) { return uint32_t(atoi(type.c_str() + type.find_first_of("123456789"))) / 8; }

    // ---- Operands -------------------------------------------------------------------------------------------------------

    Slot constant(uint64_t value) {
        const auto known = constants.find(value);
        if (known != constants.end()) return known->second;
        const Slot slot = function->n_slots++;
        function->constants.push_back({slot, value});
        return constants[value] = slot;
    }
    Slot declare(const std::string &name) { return scopes.back().slots[name] = function->n_slots++; }
    Slot find(const std::string &name) {
        for (size_t i = scopes.size(); i-- > 0;) {
            const auto found = scopes[i].slots.find(name);
            if (found != scopes[i].slots.end()) return found->second;
            // Of those that are declared by number few are used.
            const size_t digits = name.find_last_not_of("0123456789") + 1;
            const auto range = scopes[i].ranges.find(name.substr(0, digits));
            if (range != scopes[i].ranges.end() && digits < name.size() && strtoul(name.c_str() + digits, nullptr, 10) < range->second)
                return scopes[i].slots[name] = function->n_slots++;
        }
        const auto variable = shared.find(name);
        if (variable != shared.end()) return constant(variable->second);
        const auto known = of_module.find(name);
        if (known != of_module.end()) {
            if (known->second.bytes != 0) return constant(place(known->second));
            return dynamic = dynamic == NONE ? function->n_slots++ : dynamic;
        }
        static const std::map<std::string, int> specials = {
            {"%tid.x", Function::TID}, {"%tid.y", Function::TID + 1}, {"%tid.z", Function::TID + 2},
            {"%ntid.x", Function::NTID}, {"%ntid.y", Function::NTID + 1}, {"%ntid.z", Function::NTID + 2},
            {"%ctaid.x", Function::CTAID}, {"%ctaid.y", Function::CTAID + 1}, {"%ctaid.z", Function::CTAID + 2},
            {"%nctaid.x", Function::NCTAID}, {"%nctaid.y", Function::NCTAID + 1}, {"%nctaid.z", Function::NCTAID + 2},
            {"%laneid", Function::LANE}};
        const auto special = specials.find(name);
        if (special == specials.end()) fail("what is " + name + "?");
        const Slot slot = scopes.front().slots[name] = function->n_slots++;
        function->specials.push_back({slot, special->second});
        return slot;
    }
    Slot operand() {
        skip_space();
        const bool is_negative = take('-');
        const bool is_not = !is_negative && take('!');
        if (is_not) fail("a predicate that is turned around");
        const std::string name = word();
        if (name == "_") return function->n_slots++;
        if (!isdigit(static_cast<unsigned char>(name[0]))) return find(name);
        uint64_t value;
        if (name.size() > 2 && name[0] == '0' && strchr("fFdD", name[1])) value = strtoull(name.c_str() + 2, nullptr, 16);
        else value = strtoull(name.c_str(), nullptr, 0);
        return constant(is_negative ? -value : value);
    }
    /// One register, or as many as there are in braces.
    void operands(std::vector<Slot> &to) {
        if (!take('{')) return to.push_back(operand());
        do to.push_back(operand());
        while (take(','));
        want('}');
    }

    // ---- Statements -----------------------------------------------------------------------------------------------------

    /// Registers: %r<9> are %r0 to %r8.
    void declare_registers() {
        word(); // the type
        do {
            const std::string name = word();
            if (!take('<')) { declare(name); continue; }
            scopes.back().ranges[name] = number();
            want('>');
        } while (take(','));
        want(';');
    }
    /// .align 8 .b8 name[16], without what follows.
    Variable variable() {
        Variable v;
        std::string type = word();
        if (type == ".align") v.align = number(), type = word();
        else v.align = bytes_of(type);
        v.bytes = bytes_of(type);
        v.name = word();
        if (take('[')) {
            v.bytes *= peek() == ']' ? 0 : number();
            want(']');
        }
        return v;
    }
    uint32_t place(const Variable &v) {
        const uint32_t offset = (function->shared_bytes + v.align - 1) / v.align * v.align;
        function->shared_bytes = offset + v.bytes;
        return shared[v.name] = offset;
    }
    void statement() {
        const size_t from = at;
        Instruction i;
        i.line = line;
        if (take('@')) {
            i.guard_is_not = take('!');
            i.guard = find(word());
        }
        std::vector<std::string> opcode = split(word());
        const std::string name = opcode[0];
        if (name == "bra") {
            i.kind = Kind::BRANCH;
            jumps.push_back({uint32_t(function->code.size()), word()});
        } else if (name == "ret" || name == "exit") {
            i.kind = Kind::RETURN;
        } else if (name == "call") {
            i.kind = Kind::CALL;
            want('(');
            i.to.push_back(operand());
            want(')'), want(',');
            const std::string callee = word();
            if (!module[callee]) module[callee].reset(new Function);
            i.callee = module[callee].get();
            want(','), want('(');
            do i.from.push_back(operand());
            while (take(','));
            want(')');
        } else {
            const bool is_store = name == "st" || name == "cp" || name == "bar" || name == "membar" || name == "fence";
            for (bool is_first = true; peek() != ';'; is_first = false) {
                if (!is_first) want(',');
                if (take('[')) {
                    i.from.push_back(operand());
                    if (take('+')) i.offset = (take('-') ? -1 : 1) * int64_t(number());
                    want(']');
                } else if (is_first && !is_store) {
                    operands(i.to);
                    if (take('|')) i.to.push_back(operand());
                } else {
                    operands(i.from);
                }
            }
            if ((name == "ld" || is_store) && !i.from.empty() && std::count(passed.begin(), passed.end(), i.from[0])) {
                if (i.offset != 0) fail("a part of a parameter");
                if (is_store) i.to.push_back(i.from[0]), i.from.erase(i.from.begin());
                opcode = {"mov", opcode.back()};
            }
            // The block's one barrier, of all threads.
            if (name == "bar" && opcode.back() == "sync" && i.from.size() == 1 && i.from[0] == constant(0)) i.kind = Kind::BARRIER;
            i.operation = operation_of(opcode, i);
            if (!i.operation && i.kind == Kind::PLAIN) fail("an instruction that is not known: " + text.substr(from, at - from));
        }
        i.text = text.substr(from, at - from);
        want(';');
        function->code.push_back(std::move(i));
    }
    void body() {
        want('{');
        for (size_t depth = 1; depth > 0;) {
            if (take('{')) { depth++, scopes.emplace_back(); continue; }
            if (take('}')) { depth--, scopes.pop_back(); continue; }
            const size_t begin = at;
            const uint32_t begin_line = line;
            if (peek() == '.') {
                const std::string directive = word();
                if (directive == ".reg") declare_registers();
                else if (directive == ".shared") place(variable()), want(';');
                else if (directive == ".param") passed.push_back(declare(variable().name)), want(';');
                else if (directive == ".pragma" || directive == ".loc") while (!take(';')) step();
                else fail("a directive that is not known: " + directive);
                continue;
            }
            if (peek() == '$') {
                const std::string label = word();
                if (take(':')) { labels[label] = uint32_t(function->code.size()); continue; }
                at = begin, line = begin_line;
            }
            statement();
        }
        for (const auto &jump : jumps) {
            if (!labels.count(jump.second)) fail("no label " + jump.second);
            function->code[jump.first].target = labels[jump.second];
        }
    }
    /// Parameters in parentheses. A kernel's one is an address; a function's are registers.
    void parameters(bool is_kernel, std::vector<Slot> *registers) {
        want('(');
        while (!take(')')) {
            if (word() != ".param") fail("expected .param");
            const Variable v = variable();
            const Slot slot = declare(v.name);
            if (is_kernel) {
                if (function->parameter_bytes != 0) fail("a kernel of more than one parameter");
                function->parameter_bytes = v.bytes;
                function->specials.push_back({slot, Function::PARAMETERS});
            } else {
                registers->push_back(slot), passed.push_back(slot);
            }
            take(',');
        }
    }
    void code(bool is_kernel) {
        Function f;
        function = &f;
        scopes.assign(1, {});
        labels.clear(), jumps.clear(), constants.clear(), shared.clear(), passed.clear(), dynamic = NONE;
        if (!is_kernel && peek() == '(') parameters(false, &f.outputs);
        f.name = word();
        parameters(is_kernel, &f.inputs);
        for (;;) {
            const char next = peek();
            if (next == ';') { step(); return; } // only a declaration
            if (next == '{') break;
            const std::string directive = word();
            if (directive != ".maxntid" && directive != ".minnctapersm" && directive != ".maxnreg" && directive != ".noreturn")
                fail("a directive that is not known: " + directive);
            uint32_t n = 1;
            do n *= number();
            while (take(','));
            if (directive == ".maxntid") f.max_threads = n;
        }
        body();
        if (dynamic != NONE) {
            f.shared_bytes = (f.shared_bytes + 15) / 16 * 16;
            f.constants.push_back({dynamic, f.shared_bytes});
        }
        find_joins(f);
        std::unique_ptr<Function> &place = module[f.name];
        if (!place) place.reset(new Function);
        const std::string name = f.name;
        *place = std::move(f);
    }
    void all() {
        while (!is_over()) {
            const std::string directive = word();
            if (directive == ".version" || directive == ".target") { while (at < text.size() && text[at] != '\n') step(); }
            else if (directive == ".address_size") number();
            else if (directive == ".visible" || directive == ".weak" || directive == ".extern") continue;
            else if (directive == ".entry") code(true);
            else if (directive == ".func") code(false);
            else if (directive == ".shared") {
                const Variable v = variable();
                want(';');
                of_module[v.name] = v;
            } else fail("a directive that is not known: " + directive);
        }
    }
};

} // namespace

Module read(const std::string &text, const std::string &name) {
    Reader reader(text, name);
    reader.all();
    return std::move(reader.module);
}

Module read_folder(const std::string &path) {
    Module all;
    for (const auto &entry : std::filesystem::directory_iterator(path)) {
        if (entry.path().extension() != ".ptx") continue;
        std::ifstream file(entry.path());
        all.merge(read({std::istreambuf_iterator<char>(file), {}}, entry.path().filename()));
    }
    return all;
}

} // namespace ptx
