#include "wire.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "hash.hpp"
#include "wire_reader.hpp"

namespace warmroute {
namespace wire {
namespace {

constexpr std::uint64_t uint32_max = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t rank_max = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t hash_bytes_typical = 9;
constexpr std::size_t event_bytes_min = 15;  // ["BlockRemoved", []]
constexpr std::size_t scratch_bytes_max = std::size_t{1} << 20;  // kept from one payload to the next

// Fields of a stored event, in the order of the positional form; the last is the keyed form's alone.
enum Field : std::size_t {
    block_hashes,
    parent_block_hash,
    token_ids,
    block_size,
    lora_id,
    medium,
    lora_name,
    extra_keys,
    group_idx,
    spec_kind,
    spec_window,
    cache_salt,
    stored_fields,
};
constexpr std::size_t stored_positions = cache_salt;
constexpr std::size_t stored_positions_min = block_size + 1;
constexpr std::array<std::string_view, stored_fields> stored_names = {
    "block_hashes",       "parent_block_hash",
    "token_ids",          "block_size",
    "lora_id",            "medium",
    "lora_name",          "extra_keys",
    "group_idx",          "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window", "cache_salt",
};
constexpr std::array<std::size_t, 3> stored_required = {block_hashes, token_ids, block_size};

constexpr std::array<std::size_t, 3> removed_positions = {block_hashes, medium, group_idx};
constexpr std::array<std::size_t, 1> removed_required = {block_hashes};

constexpr std::string_view stored_tag = "BlockStored";
constexpr std::string_view removed_tag = "BlockRemoved";
constexpr std::string_view cleared_tag = "AllBlocksCleared";

constexpr std::array<std::pair<std::string_view, Medium>, 8> media = {{
    {"GPU", Medium::gpu},
    {"CPU", Medium::cpu},
    {"CPU_PINNED", Medium::cpu},
    {"STORAGE", Medium::storage},
    {"DISK", Medium::storage},
    {"EXTERNAL", Medium::storage},
    {"FS", Medium::storage},
    {"OBJ", Medium::storage},
}};
constexpr std::array<std::string_view, 3> full_attention_kinds = {"full_attention", "mla_attention",
                                                                  "sink_full_attention"};

// One of a block's extra keys. Those that are neither text nor bytes distinguish nothing.
struct Key {
    enum class Kind : std::uint8_t { text, bytes, other } kind = Kind::other;
    bool paired = false;  // came as [identifier, offset]
    std::string_view content;
};

// What an event says, as published. Scratch: one serves all events of a payload.
struct Published {
    Hashes hashes;
    Hashes parent;
    std::vector<Token> tokens;
    std::size_t token_count = 0;
    std::vector<std::uint64_t> digests;  // of the content of each block, if the hashes came before the tokens
    std::uint64_t block_size = 0;
    std::optional<Integer> lora_id;
    std::optional<std::string_view> medium;
    std::optional<std::string_view> lora_name;
    std::vector<Key> keys;               // of all blocks
    std::vector<std::size_t> keys_ends;  // per block: where its keys end in `keys`
    std::optional<std::uint64_t> group;
    std::optional<std::string_view> kind;
    std::uint64_t window = no_window;
    Key salt;

    std::size_t bytes() const noexcept {
        return tokens.capacity() * sizeof(Token) + keys.capacity() * sizeof(Key) + keys_ends.capacity() * sizeof(std::size_t);
    }

    void reset() {
        hashes = {};
        parent = {};
        token_count = 0;
        digests.clear();
        block_size = 0;
        lora_id.reset();
        medium.reset();
        lora_name.reset();
        keys.clear();
        keys_ends.clear();
        group.reset();
        kind.reset();
        window = no_window;
        salt = {};
    }
};

std::string tagged_number(Integer value) {
    std::string tagged = {value.negative ? 'n' : 'u'};
    int bytes = 8;
    if (value.negative) {  // minimal two's complement: leave out leading ones that the sign implies
        const auto number = static_cast<std::int64_t>(value.bits);
        while (bytes > 1 && number >> (8 * (bytes - 1) - 1) == -1) --bytes;
    }
    while (bytes-- > 0) tagged.push_back(static_cast<char>(value.bits >> (8 * bytes)));
    return tagged;
}

std::string tagged_bytes(std::string_view bytes) {
    std::string tagged = "b";
    return tagged.append(bytes);
}

void append_hash(Reader& reader, Hashes& hashes) {
    const auto tag_all = [&hashes] {
        for (const std::uint64_t number : hashes.numbers) hashes.tagged.push_back(tagged_number({number, false}));
        hashes.numbers.clear();
    };
    if (reader.next_is_binary()) {
        tag_all();
        hashes.tagged.push_back(tagged_bytes(reader.binary()));
        return;
    }
    const Integer value = reader.integer();
    if (value.negative) tag_all();
    if (value.negative || !hashes.tagged.empty()) {
        hashes.tagged.push_back(tagged_number(value));
    } else {
        hashes.numbers.push_back(value.bits);
    }
}

Key scalar_key(Reader& reader) {
    if (reader.next_is_text()) return {Key::Kind::text, false, reader.text()};
    if (reader.next_is_binary()) return {Key::Kind::bytes, false, reader.binary()};
    reader.skip_scalar();
    return {};
}

Key block_key(Reader& reader) {
    if (!reader.next_is_array()) return scalar_key(reader);
    std::size_t left = reader.array();
    Key key;
    if (left > 0) {
        key = scalar_key(reader);
        while (--left > 0) scalar_key(reader);
    }
    key.paired = true;
    return key;
}

class Decoder {
  public:
    Decoder(Bytes payload, Published& scratch) : reader_(payload), published_(scratch) {}

    EventBatch batch() {
        EventBatch batch;
        const std::size_t parts = reader_.array();
        if (parts < 2) throw Declined{};
        batch.ts = reader_.floating();
        const std::size_t count = reader_.array();
        batch.events.reserve(std::min(count, reader_.left() / event_bytes_min));
        for (std::size_t i = 0; i < count; ++i) event(batch);
        if (parts > 2 && !reader_.nil()) batch.rank = reader_.integer(0, rank_max);
        for (std::size_t i = 3; i < parts; ++i) reader_.skip();
        if (reader_.left() != 0) throw Declined{};
        return batch;
    }

  private:
    void event(EventBatch& batch) {
        published_.reset();
        const bool keyed = reader_.next_is_map();
        const std::size_t parts = keyed ? reader_.map() : reader_.array();
        if (parts == 0 || (keyed && reader_.name() != "type")) throw Declined{};
        const std::string_view tag = reader_.name();
        if (tag == stored_tag) {
            keyed ? keyed_fields(parts - 1, stored_required) : stored_array(parts - 1);
            batch.events.emplace_back(stored(batch.unknown_media));
        } else if (tag == removed_tag) {
            keyed ? keyed_fields(parts - 1, removed_required) : removed_array(parts - 1);
            batch.events.emplace_back(removed(batch.unknown_media));
        } else if (tag == cleared_tag) {
            for (std::size_t i = parts - 1; i > 0; --i) {
                if (keyed && reader_.name() == "type") throw Declined{};  // a key is text, and there is one tag
                reader_.skip();
            }
            batch.events.emplace_back(Cleared{});
            batch.has_clear = true;
        } else {
            throw Declined{};
        }
    }

    // Both forms.

    void stored_array(std::size_t parts) {
        if (parts < stored_positions_min) throw Declined{};
        const std::size_t known = std::min(parts, stored_positions);
        for (std::size_t i = 0; i < known; ++i) {
            if (i == lora_name && reader_.next_is_map()) {
                metadata();
            } else {
                field(static_cast<Field>(i));
            }
        }
        for (std::size_t i = known; i < parts; ++i) reader_.skip();
    }

    void removed_array(std::size_t parts) {
        if (parts == 0) throw Declined{};
        const std::size_t known = std::min(parts, removed_positions.size());
        for (std::size_t i = 0; i < known; ++i) field(static_cast<Field>(removed_positions[i]));
        for (std::size_t i = known; i < parts; ++i) reader_.skip();
    }

    template <std::size_t required_count>
    void keyed_fields(std::size_t pairs, const std::array<std::size_t, required_count>& required) {
        constexpr bool is_stored = required_count == stored_required.size();
        const auto known = [](std::size_t i) { return is_stored || i == block_hashes || i == medium || i == group_idx; };
        std::uint32_t seen = 0;
        std::size_t next = 0;  // engines write fields in order: the next name is most often the one after the last
        for (; pairs > 0; --pairs) {
            const std::string_view name = reader_.name();
            std::size_t i = next;
            for (std::size_t tries = 0; tries < stored_fields && stored_names[i] != name; ++tries) {
                i = (i + 1) % stored_fields;
            }
            if (stored_names[i] != name || !known(i)) {
                if (name == "type") throw Declined{};
                reader_.skip();
                continue;
            }
            if ((seen >> i & 1) != 0) throw Declined{};
            seen |= std::uint32_t{1} << i;
            next = (i + 1) % stored_fields;
            field(static_cast<Field>(i));
        }
        for (const std::size_t i : required) {
            if ((seen >> i & 1) == 0) throw Declined{};
        }
    }

    // SGLang's metadata, in the place of the adapter's name.
    void metadata() {
        bool seen = false;
        for (std::size_t pairs = reader_.map(); pairs > 0; --pairs) {
            const bool is_salt = reader_.text() == stored_names[cache_salt];
            if (is_salt && std::exchange(seen, true)) throw Declined{};
            is_salt ? field(cache_salt) : static_cast<void>(scalar_key(reader_));
        }
    }

    void field(Field which) {
        Published& it = published_;
        switch (which) {
            case block_hashes: return hashes();
            case token_ids: return tokens();
            case block_size: it.block_size = reader_.integer(1, uint32_max); return;
            default: break;
        }
        if (reader_.nil()) return;
        switch (which) {
            case parent_block_hash: return append_hash(reader_, it.parent);
            case lora_id: it.lora_id = reader_.integer(); return;
            case medium: it.medium = reader_.text(); return;
            case lora_name: it.lora_name = reader_.text(); return;
            case extra_keys: return keys();
            case group_idx: it.group = reader_.integer(0, uint32_max); return;
            case spec_kind: it.kind = reader_.text(); return;
            case spec_window: it.window = reader_.integer(1, uint32_max); return;
            case cache_salt:
                if (!reader_.next_is_text() && !reader_.next_is_binary()) throw Declined{};
                it.salt = scalar_key(reader_);
                return;
            default: throw Declined{};
        }
    }

    void hashes() {
        const std::size_t count = reader_.array();
        std::vector<std::uint64_t>& numbers = published_.hashes.numbers;
        numbers.resize(std::min(count, reader_.left() / hash_bytes_typical));
        numbers.resize(reader_.long_integers(numbers.data(), numbers.size()));
        for (std::size_t i = numbers.size(); i < count; ++i) append_hash(reader_, published_.hashes);
    }

    void tokens() {
        Published& it = published_;
        it.token_count = reader_.array();
        if (it.tokens.size() < it.token_count + tokens_wide_room) it.tokens.resize(it.token_count + tokens_wide_room);
        // The block size comes later, but can only be this.
        const std::size_t blocks = it.hashes.size();
        const std::size_t size = blocks == 0 ? 0 : it.token_count / blocks;
        const bool whole = size != 0 && size * blocks == it.token_count;
        it.digests.reserve(whole ? blocks : 0);
        const Token* block = it.tokens.data();
        reader_.tokens(it.tokens.data(), it.token_count, [&](const Token* end) {
            for (; whole && static_cast<std::size_t>(end - block) >= size; block += size) {
                it.digests.push_back(block_digest(block, size));
            }
        });
    }

    void keys() {
        for (std::size_t blocks = reader_.array(); blocks > 0; --blocks) {
            if (!reader_.nil()) {
                for (std::size_t count = reader_.array(); count > 0; --count) {
                    published_.keys.push_back(block_key(reader_));
                }
            }
            published_.keys_ends.push_back(published_.keys.size());
        }
    }

    // What was meant: warmroute/core/wire/canonical.py.

    Removed removed(std::uint64_t& unknown_media) {
        return {std::move(published_.hashes), published_.group.value_or(0), medium_of(unknown_media)};
    }

    Stored stored(std::uint64_t& unknown_media) {
        Published& it = published_;
        const std::size_t count = it.hashes.size();
        const bool fits = it.token_count == it.block_size * count;
        if (!fits && count > 0 && it.token_count > 0 && !it.group && !it.kind) throw Declined{};
        const bool full = !it.kind || std::ranges::find(full_attention_kinds, *it.kind) != full_attention_kinds.end();
        Stored event;
        if (fits && full) event.digests = digests(count);
        event.hashes = std::move(it.hashes);
        event.parent = std::move(it.parent);
        event.block_size = it.block_size;
        event.window = it.window;
        event.group = it.group.value_or(0);
        event.medium = medium_of(unknown_media);
        return event;
    }

    Medium medium_of(std::uint64_t& unknown_media) const {
        if (!published_.medium || published_.medium->empty()) return Medium::gpu;
        const auto known = [](std::string_view name) {
            return std::ranges::find(media, name, [](const auto& each) { return each.first; });
        };
        auto found = known(*published_.medium);
        if (found == media.end()) {
            std::string name(*published_.medium);
            for (char& letter : name) {
                if (static_cast<unsigned char>(letter) >= 0x80) throw Declined{};
                if (letter >= 'a' && letter <= 'z') letter = static_cast<char>(letter - 'a' + 'A');
            }
            found = known(name);
        }
        if (found != media.end()) return found->second;
        ++unknown_media;
        return Medium::storage;
    }

    // Content digest plus extra digest of each block.
    std::vector<std::uint64_t> digests(std::size_t count) {
        Published& it = published_;
        const bool keyed = !it.keys.empty();
        if (keyed && it.keys_ends.size() != count) throw Declined{};
        const bool salted = !it.salt.content.empty() && it.parent.size() == 0;
        const std::uint64_t plain = extra_of(0, 0, false);
        for (std::size_t i = it.digests.size(); i < count; ++i) {
            it.digests.push_back(block_digest(it.tokens.data() + i * it.block_size, it.block_size));
        }
        std::vector<std::uint64_t> sums = std::move(it.digests);
        for (std::uint64_t& sum : sums) sum += plain;
        if (keyed || salted) {
            for (std::size_t i = 0; i < count; ++i) {
                const std::size_t start = !keyed || i == 0 ? 0 : it.keys_ends[i - 1];
                sums[i] += extra_of(start, keyed ? it.keys_ends[i] : 0, salted && i == 0) - plain;
            }
        }
        return sums;
    }

    // The extra digest of a block whose keys are [start, end) of all.
    std::uint64_t extra_of(std::size_t start, std::size_t end, bool salted) const {
        const Published& it = published_;
        ExtraDigest extra;
        if (it.lora_name && !it.lora_name->empty()) {
            extra.add('L', *it.lora_name);
        } else if (it.lora_id) {
            const Integer id = *it.lora_id;
            extra.add('L', '#' + (id.negative ? std::to_string(static_cast<std::int64_t>(id.bits))
                                              : std::to_string(id.bits)));
        }
        // The adapter's name is among the keys too: it is taken out once, as a salt may be spelled the same.
        if (start < end && it.lora_name) {
            const Key& first = it.keys[start];
            if (first.kind == Key::Kind::text && !first.paired && first.content == *it.lora_name) ++start;
        }
        for (; start < end; ++start) add(extra, it.keys[start]);
        if (salted) add(extra, it.salt);
        return extra.value();
    }

    static void add(ExtraDigest& extra, const Key& key) {
        if (key.kind != Key::Kind::other) extra.add(key.kind == Key::Kind::text ? 'S' : 'B', key.content);
    }

    Reader reader_;
    Published& published_;
};

}  // namespace

bool is_utf8(std::string_view text) noexcept {
    const auto* at = reinterpret_cast<const unsigned char*>(text.data());
    const auto* const end = at + text.size();
    while (at != end) {
        const unsigned char first = *at++;
        if (first < 0x80) continue;
        // How many bytes follow, and the range of the first of them: all others are 80..BF.
        const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
        const unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        const unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
        if (first < 0xC2 || first > 0xF4 || end - at < more || *at < low || *at > high) return false;
        for (int i = 1; i < more; ++i) {
            if (at[i] >> 6 != 2) return false;
        }
        at += more;
    }
    return true;
}

}  // namespace wire

std::uint64_t payload_mark(Bytes payload) noexcept {
    constexpr std::size_t chunk_tokens = 1024;  // as many as there is a table of secrets for
    constexpr std::size_t chunk_bytes = chunk_tokens * sizeof(Token);
    std::uint64_t mark = root;
    std::size_t left = payload.size();
    const std::uint8_t* at = payload.data();
    for (; left >= chunk_bytes; left -= chunk_bytes, at += chunk_bytes) {
        mark = chain(mark, block_digest(at, chunk_tokens), 0);
    }
    const std::size_t whole = left / sizeof(Token);
    std::uint64_t rest = 0;  // fewer bytes than a token has, and how many all are
    if (left > 0) std::memcpy(&rest, at + whole * sizeof(Token), left - whole * sizeof(Token));
    return chain(mark, block_digest(at, whole), rest << 40 ^ payload.size());
}

std::optional<EventBatch> decode_payload(Bytes payload) {
    thread_local wire::Published scratch;
    std::optional<EventBatch> batch;
    try {
        batch = wire::Decoder(payload, scratch).batch();
        batch->mark = payload_mark(payload);
    } catch (const wire::Declined&) {
        batch.reset();
    }
    if (scratch.bytes() > wire::scratch_bytes_max) scratch = {};
    return batch;
}

}  // namespace warmroute
