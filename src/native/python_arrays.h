// Arrays that Python gives, checked by name.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <type_traits>
#include <vector>

namespace nb = nanobind;

using Shape = std::vector<int64_t>;  // -1: any length

template <class T> struct Array {
    T* data;
    Shape shape;
};

[[noreturn]] inline void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

// A C-contiguous array of T on the CPU; of const T, it may be read-only. Raises ValueError.
template <class T> Array<T> array(nb::handle given, const char* name, const Shape& shape) {
    using Number = std::remove_const_t<T>;
    using Found = std::conditional_t<std::is_const_v<T>, nb::ndarray<const Number, nb::c_contig, nb::device::cpu>,
                                     nb::ndarray<Number, nb::c_contig, nb::device::cpu>>;
    Found found;
    bool fits = nb::try_cast<Found>(given, found, false) && found.ndim() == shape.size();
    for (size_t axis = 0; fits && axis < shape.size(); ++axis)
        fits = shape[axis] < 0 || shape[axis] == int64_t(found.shape(axis));
    if (fits) return {found.data(), Shape(found.shape_ptr(), found.shape_ptr() + found.ndim())};

    std::string wanted, got = nb::str(nb::object(given.type().attr("__name__"))).c_str();
    for (int64_t length : shape) wanted += (wanted.empty() ? "" : ", ") + (length < 0 ? "n" : std::to_string(length));
    for (const char* attribute : {"dtype", "shape"})
        if (nb::hasattr(given, attribute)) got += std::string(" ") + nb::str(nb::object(given.attr(attribute))).c_str();
    const char* type = std::is_same_v<Number, float> ? "float32" : "int32";
    static_assert(std::is_same_v<Number, float> || std::is_same_v<Number, int32_t>);
    refuse(std::string(name) + " must be a " + (std::is_const_v<T> ? "" : "writable ") + "C-contiguous array of " +
           type + " [" + wanted + "]: got " + got);
}
