-- SPDX-License-Identifier: Apache-2.0
-- Serves requests with decisions of a real runner, and prints what came of them. Run from the project's root:
-- luajit tests/lua/decide.lua < requests
--
-- Each line is a JSON object with a request's `method`, its `headers` (a list of names and values), and the value
-- `decision` of the runner's header. Values are in hexadecimal digits, so that they can be any bytes. The request is
-- served twice by a new worker that caches decisions. Each line of the output has `statuses` of both times (0 for
-- none), whether the second one was a `hit`, and its `key`, `version`, `conf` and `headers`.
package.path = "tests/lua/?.lua;" .. package.path
local stand_in = require("stand_in")

local function from_hex(text)
    return (text:gsub("%x%x", function(digits) return string.char(tonumber(digits, 16)) end))
end

local function to_hex(bytes)
    return (bytes:gsub(".", function(byte) return ("%02x"):format(byte:byte()) end))
end

for line in io.lines() do
    local asked = assert(stand_in.cjson.decode(line))
    local request = { method = asked.method, headers = {}, remember = 10 }
    for i, header in ipairs(asked.headers) do request.headers[i] = { header[1], from_hex(header[2]) } end
    local decision = from_hex(asked.decision)
    request.runner = function(ctx, set_header) set_header(ctx, "x-kube-coders-upstream", decision) end
    local worker = stand_in.worker()
    local first = stand_in.serve(worker, request)
    local second = stand_in.serve(worker, request)
    for _, logged in ipairs(stand_in.log) do
        if logged.level == "error" then io.stderr:write(logged.text, "\n") end
    end
    local headers = {}
    for name, value in pairs(second.headers) do
        headers[name] = to_hex(type(value) == "table" and table.concat(value, ", ") or value)
    end
    print(stand_in.cjson.encode({
        statuses = { first.status or 0, second.status or 0 }, hit = not second.is_called,
        key = second.key, version = second.version, conf = second.conf, headers = headers,
    }))
end
