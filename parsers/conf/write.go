package conf

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode"

	"github.com/portsnare/portsnare/detector"
)

// AppendNative appends c in the native form: what [Load] reads back as c. Keys
// at their defaults are left out, except mode and interfaces.
func (c Config) AppendNative(dst []byte) []byte {
	w := nativeWriter{text: dst}
	w.pair("mode", string(c.Mode))
	w.pair("interfaces", c.Interfaces)
	w.textUnless("state", c.State, DefaultState)
	w.textUnless("control", c.Control, DefaultControl)
	w.pairIf(len(c.OutputDirs) > 0, "output_dirs", c.OutputDirs)

	w.table("detect")
	w.textUnless("tcp_ports", c.Detect.TCPPorts.String(), "")
	w.textUnless("udp_ports", c.Detect.UDPPorts.String(), "")
	w.pairIf(len(c.Detect.Ignore) > 0, "ignore", c.Detect.Ignore)
	w.numberUnless("trigger", c.Detect.Trigger, 0)
	w.pairIf(c.Detect.Broadcasts, "broadcasts", true)
	w.pairIf(c.Detect.SkipServiceCheck, "service_check", false)
	w.pairIf(c.Detect.SkipLocalCheck, "local_check", false)

	w.ban(c.Ban)

	w.table("trap")
	w.textUnless("tcp_ports", c.Trap.TCPPorts.String(), "")
	w.textUnless("udp_ports", c.Trap.UDPPorts.String(), "")
	w.textUnless("banner", c.Trap.Banner, "")

	w.table("log")
	w.pairIf(c.Log.NoStdout, "stdout", false)
	w.pairIf(c.Log.Syslog, "syslog", true)
	w.textUnless("syslog_tag", c.Log.SyslogTag, DefaultSyslogTag)
	w.textUnless("format", string(c.Log.Format), string(LinesPortSentry2))
	w.textUnless("history", c.Log.History, "")
	w.textUnless("history_format", string(c.Log.HistoryFormat), string(HistoryPortSentry2))
	w.pairIf(c.Log.Resolve, "resolve", true)
	w.pairIf(c.Log.PerSecond != 0, "per_second", int64(c.Log.PerSecond))
	w.durationUnless("resolve_within", c.Log.ResolveWithin, DefaultResolveWithin)

	w.table("events")
	w.textUnless("json", c.Events.JSON, "")

	for _, name := range slices.Sorted(maps.Keys(c.Outputs)) {
		w.output(name, c.Outputs[name])
	}
	return w.text
}

// ban writes the table [ban].
func (w *nativeWriter) ban(b Ban) {
	w.table("ban")
	w.textUnless("evidence", string(b.Evidence), string(EvidenceOff))
	w.textUnless("tcp", string(b.TCP), string(ReactOff))
	w.textUnless("udp", string(b.UDP), string(ReactOff))
	w.durationUnless("for", b.For, detector.DefaultBanFor)
	w.durationUnless("max", b.Max, b.defaultMax())
	w.durationUnless("memory", b.Memory, detector.DefaultBanMemory)
	w.durationUnless("grace", b.Grace, detector.DefaultBanGrace)
	w.numberUnless("ipv6_prefix", b.IPv6Prefix, detector.DefaultBanPrefix6)
	w.numberUnless("per_minute", b.PerMinute, detector.DefaultBansPerMinute)
	w.numberUnless("total", b.Total, detector.DefaultMaxBans)
	w.pairIf(b.DryRun, "dry_run", true)
	var never []string
	for _, prefix := range b.Never.Prefixes {
		never = append(never, formatPrefix(prefix))
	}
	never = append(never, b.Never.Names...)
	w.pairIf(len(never) > 0, "never", never)
	w.pairIf(len(b.SSHPorts) > 0, "ssh_ports", b.SSHPorts)
	w.textUnless("file", b.File, "")
	w.textUnless("file_format", string(b.FileFormat), string(BanFilePortSentry2))
}

// A nativeWriter builds a TOML text.
type nativeWriter struct {
	text    []byte
	pending string // a table whose header is due before its first key
}

// table starts a table. It leaves no trace if no key follows.
func (w *nativeWriter) table(name string) { w.pending = name }

// header writes the header that is due.
func (w *nativeWriter) header() {
	if w.pending == "" {
		return
	}
	if len(w.text) > 0 {
		w.text = append(w.text, '\n')
	}
	w.text = append(w.text, "["+w.pending+"]\n"...)
	w.pending = ""
}

func (w *nativeWriter) pair(key string, value any) {
	w.header()
	w.text = append(w.text, key+" = "...)
	w.text = append(appendValue(w.text, value), '\n')
}

func (w *nativeWriter) pairIf(differs bool, key string, value any) {
	if differs {
		w.pair(key, value)
	}
}

func (w *nativeWriter) textUnless(key, value, byDefault string) {
	w.pairIf(value != byDefault, key, value)
}

func (w *nativeWriter) numberUnless(key string, value, byDefault int) {
	w.pairIf(value != byDefault, key, int64(value))
}

func (w *nativeWriter) durationUnless(key string, value, byDefault time.Duration) {
	w.pairIf(value != byDefault, key, FormatDuration(value))
}

// output writes an [output.NAME] block, its settings a line each.
func (w *nativeWriter) output(name string, o Output) {
	w.table("output." + name)
	w.textUnless("sha256", hex.EncodeToString(o.SHA256), "")
	w.pairIf(o.Required, "required", true)
	w.pairIf(len(o.Capabilities) > 0, "capabilities", o.Capabilities)
	if len(o.Settings) == 0 {
		w.header()
		return
	}
	w.table("output." + name + ".settings")
	for _, key := range slices.Sorted(maps.Keys(o.Settings)) {
		w.pair(bareOrQuoted(key), o.Settings[key])
	}
}

// appendValue appends a value of the kinds that a Config holds.
func appendValue(dst []byte, value any) []byte {
	switch v := value.(type) {
	case string:
		return appendString(dst, v)
	case bool:
		return strconv.AppendBool(dst, v)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case uint16:
		return strconv.AppendUint(dst, uint64(v), 10)
	case []string:
		return appendList(dst, v)
	case []uint16:
		return appendList(dst, v)
	case []any:
		return appendList(dst, v)
	case map[string]any:
		return appendInlineTable(dst, v)
	}
	panic(fmt.Sprintf("a configuration holds no %T", value))
}

func appendList[T any](dst []byte, list []T) []byte {
	dst = append(dst, '[')
	for i, element := range list {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		dst = appendValue(dst, element)
	}
	return append(dst, ']')
}

func appendInlineTable(dst []byte, table map[string]any) []byte {
	dst = append(dst, '{')
	for i, key := range slices.Sorted(maps.Keys(table)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, " "+bareOrQuoted(key)+" = "...)
		dst = appendValue(dst, table[key])
	}
	return append(dst, " }"...)
}

// appendString appends s as a basic TOML string. The control characters are
// those of TOML 1.0, which allows only the tab among them.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r == '\n':
			dst = append(dst, `\n`...)
		case r != '\t' && unicode.IsControl(r):
			dst = fmt.Appendf(dst, `\u%04X`, r)
		default:
			dst = append(dst, string(r)...)
		}
	}
	return append(dst, '"')
}
