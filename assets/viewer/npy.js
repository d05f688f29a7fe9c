// Arrays in NumPy's .npy files, read a few rows at a time: a file of tokens may hold gigabytes.
"use strict";

/** A problem with a file, told in one line to the person at the page. */
class FileProblem extends Error {}

const NPY_ARRAYS = {
  b1: Uint8Array,
  u1: Uint8Array,
  i1: Int8Array,
  u2: Uint16Array,
  i2: Int16Array,
  u4: Uint32Array,
  i4: Int32Array,
  u8: BigUint64Array,
  i8: BigInt64Array,
  f4: Float32Array,
  f8: Float64Array,
};
const NPY_HEADER_LIMIT = 1 << 16; // bytes; headers of plain arrays have 128
const HOST_IS_LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** Bytes [start, stop) of a file, or a FileProblem if it can't be read any more. */
async function readBytes(file, path, start, stop) {
  try {
    return await file.slice(start, stop).arrayBuffer();
  } catch (error) {
    throw new FileProblem(`${path} can't be read (${error.name}): it has changed or moved, choose the folder again`);
  }
}

/**
 * One .npy file, versions 1 to 3, of integers or floats in either byte order.
 *
 * `shape`: list of lengths; `rowLength`: values in a row, the product of all but the first length; `isInteger`;
 * `path`: what messages call the file.
 */
class NpyFile {
  /** Read the header. Throws FileProblem for anything but a whole, C-ordered file of integers or floats. */
  static async open(file, path) {
    const damaged = (found) => new FileProblem(`${path} is damaged or not a .npy file (${found}); make it again`);
    const start = new DataView(await readBytes(file, path, 0, 12));
    const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59]; // \x93NUMPY
    if (start.byteLength < 10 || magic.some((byte, i) => start.getUint8(i) !== byte)) {
      throw damaged(file.size ? "it doesn't begin with \\x93NUMPY" : "it is empty");
    }
    const version = start.getUint8(6);
    if (version < 1 || version > 3) throw damaged(`format version ${version}, expected 1, 2 or 3`);
    const headerStart = version === 1 ? 10 : 12;
    if (start.byteLength < headerStart) throw damaged("its header is cut short");
    const headerLength = version === 1 ? start.getUint16(8, true) : start.getUint32(8, true);
    if (headerLength > NPY_HEADER_LIMIT) throw damaged(`a header of ${headerLength.toLocaleString("en")} bytes`);
    const dataStart = headerStart + headerLength;
    const bytes = await readBytes(file, path, headerStart, dataStart);
    if (bytes.byteLength < headerLength) throw damaged("its header is cut short");
    const header = new TextDecoder(version === 3 ? "utf-8" : "latin1").decode(bytes);

    const type = /'descr'\s*:\s*'([<>|=])([a-zA-Z]\d+)'/.exec(header);
    const order = /'fortran_order'\s*:\s*(True|False)/.exec(header);
    const shapeText = /'shape'\s*:\s*\(([\d,\sL]*)\)/.exec(header);
    if (!order || !shapeText || !/'descr'/.test(header)) throw damaged("its header can't be understood");
    if (!type || !(type[2] in NPY_ARRAYS)) {
      const found = /'descr'\s*:\s*('[^']*'|\[)/.exec(header);
      throw new FileProblem(
        `${path} holds ${found?.[1] === "[" ? "records" : found?.[1]}, expected integers or floats`,
      );
    }
    const shape = (shapeText[1].match(/\d+/g) ?? []).map(Number);
    if (order[1] === "True" && shape.length > 1) {
      throw new FileProblem(`${path} is stored column by column; save it again with numpy.ascontiguousarray`);
    }
    const array = new NpyFile(file, path, type[2], type[1], shape, dataStart);
    const expected = dataStart + shape.reduce((product, length) => product * length, 1) * array.itemSize;
    if (!Number.isSafeInteger(expected)) throw damaged(`shape (${shape.join(", ")})`);
    if (file.size < expected) {
      const [found, whole] = [file.size, expected].map((size) => size.toLocaleString("en"));
      throw damaged(`cut short: ${found} bytes, expected ${whole}`);
    }
    return array;
  }

  constructor(file, path, type, byteOrder, shape, dataStart) {
    Object.assign(this, { file, path, type, shape, dataStart });
    this.array = NPY_ARRAYS[type];
    this.itemSize = this.array.BYTES_PER_ELEMENT;
    this.swapped =
      this.itemSize > 1 && (byteOrder === ">" ? HOST_IS_LITTLE_ENDIAN : byteOrder === "<" && !HOST_IS_LITTLE_ENDIAN);
    this.isInteger = type[0] === "i" || type[0] === "u";
    this.rowLength = shape.slice(1).reduce((product, length) => product * length, 1);
  }

  get length() {
    return this.shape[0] ?? 1;
  }

  get size() {
    return this.file.size; // bytes
  }

  /** Rows [start, stop), flat, as a typed array; 64-bit integers become doubles. */
  async rows(start, stop) {
    const rowBytes = this.rowLength * this.itemSize;
    const buffer = await readBytes(
      this.file,
      this.path,
      this.dataStart + start * rowBytes,
      this.dataStart + stop * rowBytes,
    );
    if (buffer.byteLength < (stop - start) * rowBytes) {
      throw new FileProblem(`${this.path} has become shorter since the folder was chosen: choose the folder again`);
    }
    if (this.swapped) {
      const bytes = new Uint8Array(buffer);
      for (let i = 0; i < bytes.length; i += this.itemSize) bytes.subarray(i, i + this.itemSize).reverse();
    }
    const values = new this.array(buffer);
    return this.itemSize === 8 && this.isInteger ? Float64Array.from(values, Number) : values;
  }

  /** The whole array. */
  all() {
    return this.rows(0, this.length);
  }
}
