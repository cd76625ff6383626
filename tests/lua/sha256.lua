-- SPDX-License-Identifier: Apache-2.0
-- `resty.sha256` as OpenResty has it, by the same library.
local ffi = require("ffi")

ffi.cdef("unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md);")

local crypto
for _, name in ipairs({ "libcrypto.so.3", "libcrypto.so.1.1" }) do
    local is_there, library = pcall(ffi.load, name)
    crypto = crypto or is_there and library
end
assert(crypto, "neither libcrypto.so.3 nor libcrypto.so.1.1 is there")

local sha256 = {}
sha256.__index = sha256

function sha256.new()
    return setmetatable({ text = "" }, sha256)
end

function sha256:update(text)
    self.text = self.text .. text
    return true
end

function sha256:final()
    local digest = ffi.new("unsigned char[32]")
    crypto.SHA256(self.text, #self.text, digest)
    sha256.last_digested = self.text
    return ffi.string(digest, 32)
end

return sha256
