// One iteration: a plan of the tree, the trunk, the head and the draw, then the drawn tokens go into the tree. Between
// two serial parts every thread does all that its own rows need.
#include "decode_loop.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ttc {
namespace {

class DecodeLoop {
  public:
    DecodeLoop(KVTree& tree, const PackedDecoder& trunk, const PackedLinear& head, const Caches& caches,
               const DecodeArgs& args, DecodeResult& result)
        : tree_(tree),
          trunk_(trunk),
          head_(head),
          caches_(caches),
          args_(args),
          result_(result),
          num_(args.handles.size),
          vocab_(head.num_out()),
          state_bytes_(size_t(trunk.hidden_size()) * (trunk.is_bf16() ? 2 : 4)),
          positions_(args.positions, args.positions + num_),
          group_live_(size_t(num_)),
          logits_(size_t(std::min(num_, args.max_live) * vocab_)) {
        for (int64_t i = 0; i < num_; ++i) {
            check(args.rules[i], 0, args.num_rules - 1, "rule", i);
            check(args.groups[i], 0, num_ - 1, "group", i);
            check(args.limits[i], 1, INT32_MAX, "limit", i);
            ++group_live_[size_t(args.groups[i])];
        }
        group_size_ = group_live_;
        fill_places();
        hidden_ = scratch_.take(state_bytes_ * live_.size());
    }

    int64_t run() {
        int64_t done = 0;
        check_sampling(sample_args());
        std::fill(result_.counts, result_.counts + num_, 0);
        while (true) {
            const std::shared_ptr<const Plan> plan = tree_.plan(view(handles_), view(ones_));
            forward(*plan);
            ++done;
            if (args_.marks) keep_states(*plan);
            drop_ended();
            if (done == args_.max_forwards || num_ready_ >= args_.min_ready) return done;
            fill_places();
            if (live_.empty()) return done;
            try {
                tree_.extend(view(handles_), view(ones_), view(pending_));
            } catch (const OutOfBlocks&) {
                return done;
            }
        }
    }

  private:
    static Int32View view(const std::vector<int32_t>& x) { return {x.data(), int64_t(x.size())}; }

    static void check(int64_t value, int64_t low, int64_t high, const char* name, int64_t branch) {
        if (value < low || value > high)
            throw std::invalid_argument("decode: " + std::string(name) + " " + std::to_string(value) + " of branch " +
                                        std::to_string(branch) + " is outside " + std::to_string(low) + ".." +
                                        std::to_string(high));
    }

    SampleArgs sample_args() const {
        return {logits_.data(),       vocab_,       num_,        vocab_,       args_.keys,
                positions_.data(),    args_.temperature, args_.top_k, args_.top_p, args_.min_p,
                result_.tokens,       result_.logprobs};
    }

    // Where a branch's next token goes, or, before it is counted, the one just drawn is.
    int64_t place(int32_t branch) const { return result_.counts[branch] * num_ + branch; }

    // Gives the free places to waiting branches.
    void fill_places() {
        for (; next_ < num_ && int64_t(live_.size()) < args_.max_live; ++next_) {
            live_.push_back(int32_t(next_));
            handles_.push_back(args_.handles.data[next_]);
            pending_.push_back(args_.pending[next_]);
        }
        ones_.resize(live_.size(), 1);
    }

    int64_t column(int32_t token) const { return token < 0 ? vocab_ : token; }

    void keep_states(const Plan& plan) {
        row_of_.resize(live_.size());
        for (size_t row = 0; row < live_.size(); ++row) row_of_[size_t(plan.order[row])] = row;
        for (size_t k = 0; k < live_.size(); ++k)
            if (args_.marks[column(result_.tokens[place(live_[k])])]) {
                const uint8_t* state = static_cast<const uint8_t*>(hidden_) + row_of_[k] * state_bytes_;
                result_.marked.push_back(live_[k]);
                result_.states.insert(result_.states.end(), state, state + state_bytes_);
            }
    }

    // Counts the tokens just drawn, and leaves in live_, handles_ and pending_ the branches that go on.
    void drop_ended() {
        size_t kept = 0;
        for (size_t k = 0; k < live_.size(); ++k) {
            const int32_t i = live_[k], token = result_.tokens[place(i)], group = args_.groups[i];
            ++positions_[size_t(i)];
            if (++result_.counts[i] == args_.limits[i] || args_.table[args_.rules[i] * (vocab_ + 1) + column(token)]) {
                if (--group_live_[size_t(group)] == 0) num_ready_ += group_size_[size_t(group)];
                continue;
            }
            live_[kept] = i, handles_[kept] = handles_[k], pending_[kept] = token;
            ++kept;
        }
        live_.resize(kept), handles_.resize(kept), pending_.resize(kept);
    }

    void forward(const Plan& plan) {
        const int64_t num = int64_t(live_.size());
        const ForwardRows rows{num,
                               plan.tokens.data(),
                               plan.positions.data(),
                               plan.slots.data(),
                               plan.items.data(),
                               plan.blocks.data(),
                               int64_t(plan.items.size() / 5),
                               int64_t(plan.blocks.size())};
        std::atomic<bool> out_of_memory{false};
        if (trunk_.is_better_apart(num)) {
            trunk_.start_apart(rows, caches_, hidden_, apart_);
            const Strips& strips = apart_.strips;
#pragma omp parallel num_threads(apart_.num_threads) if (apart_.num_threads > 1)
            {
                const auto [lo, hi] = my_part(strips.num);
                if (!trunk_.run_apart(apart_, lo, hi) || !draw(plan, strips.start(lo), strips.start(hi)))
                    out_of_memory = true;
            }
        } else {
            trunk_.forward(rows, caches_, hidden_);
            if (!draw(plan, 0, num)) out_of_memory = true;
        }
        if (out_of_memory) throw std::bad_alloc();
    }

    // This thread's share of n.
    static std::pair<int64_t, int64_t> my_part(int64_t n) {
#ifdef _OPENMP
        const int64_t t = omp_get_thread_num(), num = omp_get_num_threads();
        return {n * t / num, n * (t + 1) / num};
#else
        return {0, n};
#endif
    }

    // The next tokens of rows [lo, hi). False: out of memory.
    bool draw(const Plan& plan, int64_t lo, int64_t hi) noexcept {
        thread_local Scratch scratch;
        if (!head_.run_rows(hidden_, lo, hi, logits_.data())) return false;
        SampleArgs sampling = sample_args();
        try {
            for (int64_t row = lo; row < hi; ++row) {
                const int32_t i = live_[size_t(plan.order[size_t(row)])];
                const int64_t at = place(i) - i;
                sampling.logits = logits_.data() + (row - i) * vocab_;  // row i of them is `row`
                sampling.tokens = result_.tokens + at, sampling.logprobs = result_.logprobs + at;
                sample_row(sampling, i, trunk_.isa(), &scratch);
            }
        } catch (const std::bad_alloc&) {
            return false;
        }
        return true;
    }

    KVTree& tree_;
    const PackedDecoder& trunk_;
    const PackedLinear& head_;
    const Caches& caches_;
    const DecodeArgs& args_;
    DecodeResult& result_;
    const int64_t num_, vocab_;
    const size_t state_bytes_;
    std::vector<int32_t> live_;  // branches that draw, and side by side what the tree is told of them
    std::vector<int32_t> handles_, ones_, pending_;
    int64_t next_ = 0;                // the first branch that has never been live
    std::vector<int32_t> positions_;  // of all branches
    std::vector<int32_t> group_live_, group_size_;
    std::vector<size_t> row_of_;  // where in hidden_ the state of live_[k] is
    int64_t num_ready_ = 0;
    Scratch scratch_;
    void* hidden_ = nullptr;     // (live branches, hidden), in the order of the plan
    std::vector<float> logits_;  // (live branches, vocabulary), in the order of the plan
    Forward apart_;
};

}  // namespace

int64_t decode(KVTree& tree, const PackedDecoder& trunk, const PackedLinear& head, const Caches& caches,
               const DecodeArgs& args, DecodeResult& result) {
    return DecodeLoop(tree, trunk, head, caches, args, result).run();
}

}  // namespace ttc
