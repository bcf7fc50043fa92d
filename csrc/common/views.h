// What a binding takes from Python by name: tensors and attention plans, as plain structs.
//
// The module does not link torch, so it calls a tensor's methods for its address and layout. Nothing is copied and
// nothing is owned: a view is valid during the call whose argument it was. Types, devices and shapes are checked
// in Python (ttc_kernels/<op>/api.py), not here.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ttc {

constexpr int kMaxDims = 5;

// The elements of a contiguous tensor whose size follows from another argument; null where Python passes None.
template <class T>
struct Elements {
    T* data = nullptr;
    operator T*() const { return data; }
};

// A tensor of up to kMaxDims dimensions; strides in elements.
struct TensorView {
    void* data = nullptr;  // null, and no dimensions, where Python passes None
    int num_dims = 0;
    int64_t shape[kMaxDims] = {}, strides[kMaxDims] = {};
    int item_bytes = 0;  // 2 for bfloat16, 4 for float32

    bool is_bf16() const { return item_bytes == 2; }
};

// `items` and `blocks` of a KVTree's Plan, or of any object with these two int32 arrays.
struct PlanView {
    using Array = pybind11::array_t<int32_t, pybind11::array::c_style>;
    // Null until they are read: an array made by default costs an allocation.
    Array items = pybind11::reinterpret_steal<Array>(pybind11::handle());
    Array blocks = pybind11::reinterpret_steal<Array>(pybind11::handle());

    int64_t num_items() const { return items.shape(0); }
    int64_t num_block_ids() const { return blocks.size(); }
    // Throws std::invalid_argument, in the name of `op`, unless items is (num_items, 5).
    void check(const char* op) const {
        if (items.ndim() != 2 || items.shape(1) != 5)
            throw std::invalid_argument(std::string(op) + ": plan.items must have shape (num_items, 5)");
    }
};

}  // namespace ttc

namespace pybind11 {
namespace detail {

// The result of calling a method of `source` without arguments; null, with no error set, where it has none.
inline object call_method(handle source, PyObject* name) {
    object result = reinterpret_steal<object>(PyObject_CallMethodNoArgs(source.ptr(), name));
    if (!result) PyErr_Clear();
    return result;
}

inline bool read_address(handle tensor, void** address) {
    static PyObject* const name = PyUnicode_InternFromString("data_ptr");
    const object result = call_method(tensor, name);
    if (!result) return false;
    *address = PyLong_AsVoidPtr(result.ptr());
    return true;
}

// A tuple of at most kMaxDims integers; its length, or -1.
inline int read_tuple(const object& tuple, int64_t (&values)[ttc::kMaxDims]) {
    if (!tuple || !PyTuple_Check(tuple.ptr()) || PyTuple_GET_SIZE(tuple.ptr()) > ttc::kMaxDims) return -1;
    const int size = static_cast<int>(PyTuple_GET_SIZE(tuple.ptr()));
    for (int i = 0; i < size; ++i) values[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i));
    return size;
}

template <class T>
struct type_caster<ttc::Elements<T>> {
    PYBIND11_TYPE_CASTER(ttc::Elements<T>, const_name("torch.Tensor | None"));

    bool load(handle source, bool) {
        void* address = nullptr;
        if (!source.is_none() && !read_address(source, &address)) return false;
        value.data = static_cast<T*>(address);
        return true;
    }
};

template <>
struct type_caster<ttc::TensorView> {
    PYBIND11_TYPE_CASTER(ttc::TensorView, const_name("torch.Tensor | None"));

    bool load(handle source, bool) {
        static PyObject* const shape = PyUnicode_InternFromString("size");
        static PyObject* const strides = PyUnicode_InternFromString("stride");
        static PyObject* const item_bytes = PyUnicode_InternFromString("element_size");
        if (source.is_none()) return true;
        if (!read_address(source, &value.data)) return false;
        value.num_dims = read_tuple(call_method(source, shape), value.shape);
        const int num_strides = read_tuple(call_method(source, strides), value.strides);
        if (value.num_dims < 0 || num_strides != value.num_dims) return false;
        const object bytes = call_method(source, item_bytes);
        if (!bytes) return false;
        value.item_bytes = static_cast<int>(PyLong_AsLong(bytes.ptr()));
        return true;
    }
};

template <>
struct type_caster<ttc::PlanView> {
    PYBIND11_TYPE_CASTER(ttc::PlanView, const_name("Plan"));

    bool load(handle source, bool) {
        return read_array(source, "items", &value.items) && read_array(source, "blocks", &value.blocks);
    }

private:
    static bool read_array(handle source, const char* name, ttc::PlanView::Array* array) {
        const object found = reinterpret_steal<object>(PyObject_GetAttrString(source.ptr(), name));
        if (found) *array = ttc::PlanView::Array::ensure(found);
        if (found && *array) return true;
        PyErr_Clear();
        return false;
    }
};

}  // namespace detail
}  // namespace pybind11
