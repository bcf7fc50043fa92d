// One iteration: a plan of the tree, the trunk, the head and the draw, then the drawn tokens go into the tree. Between
// two serial parts every thread does all that its own rows need.
#include "decode_loop.h"

#include <atomic>
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
               const DecodeArgs& args, const DecodeResult& result)
        : tree_(tree),
          trunk_(trunk),
          head_(head),
          caches_(caches),
          args_(args),
          result_(result),
          num_(args.handles.size),
          vocab_(head.num_out()),
          ones_(size_t(num_), 1),
          positions_(args.positions, args.positions + num_),
          logits_(size_t(num_ * vocab_)) {
        for (int64_t i = 0; i < num_; ++i)
            if (args.rules[i] < 0 || args.rules[i] >= args.num_rules)
                throw std::invalid_argument("decode: rule " + std::to_string(args.rules[i]) + " of branch " +
                                            std::to_string(i) + " is outside 0.." +
                                            std::to_string(args.num_rules - 1));
    }

    int64_t run() {
        int64_t done = 0;
        check_sampling(sample_args(0));
        while (true) {
            const std::shared_ptr<const Plan> plan = tree_.plan(args_.handles, ones());
            for (int64_t row = 0; row < num_; ++row) result_.row_of[plan->order[size_t(row)]] = row;
            forward(*plan, sample_args(done));
            const int32_t* tokens = result_.tokens + done * num_;
            ++done;
            for (int32_t& position : positions_) ++position;
            if (done == args_.max_forwards || has_end(tokens)) return done;
            try {
                tree_.extend(args_.handles, ones(), {tokens, num_});
            } catch (const OutOfBlocks&) {
                return done;
            }
        }
    }

  private:
    Int32View ones() const { return {ones_.data(), num_}; }

    SampleArgs sample_args(int64_t forward) const {
        return {logits_.data(),       vocab_,       num_,        vocab_,       args_.keys,
                positions_.data(),    args_.temperature, args_.top_k, args_.top_p, args_.min_p,
                result_.tokens + forward * num_, result_.logprobs + forward * num_};
    }

    bool has_end(const int32_t* tokens) const {
        bool is_end = false;
        for (int64_t i = 0; i < num_; ++i)
            is_end |= args_.table[args_.rules[i] * (vocab_ + 1) + (tokens[i] < 0 ? vocab_ : tokens[i])];
        return is_end;
    }

    void forward(const Plan& plan, const SampleArgs& sampling) {
        const ForwardRows rows{num_,
                               plan.tokens.data(),
                               plan.positions.data(),
                               plan.slots.data(),
                               plan.items.data(),
                               plan.blocks.data(),
                               int64_t(plan.items.size() / 5),
                               int64_t(plan.blocks.size())};
        std::atomic<bool> out_of_memory{false};
        if (trunk_.is_better_apart(num_)) {
            trunk_.start_apart(rows, caches_, result_.hidden, apart_);
            const Strips& strips = apart_.strips;
#pragma omp parallel num_threads(apart_.num_threads) if (apart_.num_threads > 1)
            {
                const auto [lo, hi] = my_part(strips.num);
                if (!trunk_.run_apart(apart_, lo, hi) || !draw(plan, sampling, strips.start(lo), strips.start(hi)))
                    out_of_memory = true;
            }
        } else {
            trunk_.forward(rows, caches_, result_.hidden);
            if (!draw(plan, sampling, 0, num_)) out_of_memory = true;
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
    bool draw(const Plan& plan, SampleArgs sampling, int64_t lo, int64_t hi) noexcept {
        thread_local Scratch scratch;
        if (!head_.run_rows(result_.hidden, lo, hi, logits_.data())) return false;
        try {
            for (int64_t row = lo; row < hi; ++row) {
                const int64_t i = plan.order[size_t(row)];
                sampling.logits = logits_.data() + (row - i) * vocab_;  // row i of them is `row`
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
    const DecodeResult& result_;
    const int64_t num_, vocab_;
    std::vector<int32_t> ones_, positions_;
    std::vector<float> logits_;  // (branches, vocabulary), in the order of the plan
    Forward apart_;
};

}  // namespace

int64_t decode(KVTree& tree, const PackedDecoder& trunk, const PackedLinear& head, const Caches& caches,
               const DecodeArgs& args, const DecodeResult& result) {
    return DecodeLoop(tree, trunk, head, caches, args, result).run();
}

}  // namespace ttc
