package conf

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/portsnare/portsnare/detector"
)

// A setter puts a TOML value into what it configures, or says why it does not
// fit.
type setter[T any] func(dst *T, value any) Faults

// nativeKeys are the keys outside [output.NAME], by their full names.
var nativeKeys = withKeys(banKeys, map[string]setter[Config]{
	"mode":        text(func(c *Config) *Mode { return &c.Mode }),
	"interfaces":  list(func(c *Config) *[]string { return &c.Interfaces }),
	"state":       text(func(c *Config) *string { return &c.State }),
	"control":     text(func(c *Config) *string { return &c.Control }),
	"output_dirs": list(func(c *Config) *[]string { return &c.OutputDirs }),

	"detect.tcp_ports":     ports(detector.TCP, func(c *Config) *detector.PortSet { return &c.Detect.TCPPorts }),
	"detect.udp_ports":     ports(detector.UDP, func(c *Config) *detector.PortSet { return &c.Detect.UDPPorts }),
	"detect.ignore":        list(func(c *Config) *[]string { return &c.Detect.Ignore }),
	"detect.trigger":       number(0, maxTrigger, func(c *Config) *int { return &c.Detect.Trigger }),
	"detect.broadcasts":    when(func(c *Config) *bool { return &c.Detect.Broadcasts }),
	"detect.service_check": unless(func(c *Config) *bool { return &c.Detect.SkipServiceCheck }),
	"detect.local_check":   unless(func(c *Config) *bool { return &c.Detect.SkipLocalCheck }),

	"trap.tcp_ports": ports(detector.TCP, func(c *Config) *detector.PortSet { return &c.Trap.TCPPorts }),
	"trap.udp_ports": ports(detector.UDP, func(c *Config) *detector.PortSet { return &c.Trap.UDPPorts }),
	"trap.banner":    text(func(c *Config) *string { return &c.Trap.Banner }),

	"log.stdout":         unless(func(c *Config) *bool { return &c.Log.NoStdout }),
	"log.syslog":         when(func(c *Config) *bool { return &c.Log.Syslog }),
	"log.syslog_tag":     text(func(c *Config) *string { return &c.Log.SyslogTag }),
	"log.history":        text(func(c *Config) *string { return &c.Log.History }),
	"log.format":         text(func(c *Config) *LineFormat { return &c.Log.Format }),
	"log.history_format": text(func(c *Config) *HistoryFormat { return &c.Log.HistoryFormat }),
	"log.resolve":        when(func(c *Config) *bool { return &c.Log.Resolve }),
	"log.per_second":     number(0, maxPerSecond, func(c *Config) *int { return &c.Log.PerSecond }),
	"log.resolve_within": duration(minResolveWithin, maxResolveWithin, func(c *Config) *time.Duration { return &c.Log.ResolveWithin }),

	"events.json": text(func(c *Config) *string { return &c.Events.JSON }),
})

// withKeys adds keys to others.
func withKeys(keys, others map[string]setter[Config]) map[string]setter[Config] {
	maps.Copy(others, keys)
	return others
}

// parseNative reads a native configuration.
func parseNative(d *diagnosis, text []byte) Config {
	var c Config
	var root map[string]any
	if err := toml.Unmarshal(text, &root); err != nil {
		d.add(syntaxFault(d.file, err))
		return c
	}
	d.findKeys(text)
	c.setTable(d, "", root)
	c.wantActions(d)
	c.wantOneKeeper(d)
	return c
}

// wantActions records the reactions that nothing carries out.
func (c *Config) wantActions(d *diagnosis) {
	want := func(r Reaction, key string) {
		if c.Ban.Evidence != EvidenceClassic || !c.lacksMeans(r) {
			return
		}
		if r == ReactBan {
			d.fault(d.at(key), `"ban" needs an output that carries it out: [output.firewall], route or command in [output.runcmd.settings], line in [output.hostsdeny.settings], or a module of your own`)
			return
		}
		d.fault(d.at(key), `"command" needs command in [output.runcmd.settings]`)
	}
	want(c.Ban.TCP, "ban.tcp")
	want(c.Ban.UDP, "ban.udp")
}

// syntaxFault describes an error of the TOML decoder.
func syntaxFault(file string, err error) (Place, Fault) {
	place := Place{File: file}
	if decodeErr, ok := errors.AsType[*toml.DecodeError](err); ok {
		place.Line, _ = decodeErr.Position()
		place.Key = strings.Join(decodeErr.Key(), ".")
	}
	return place, Fault{Text: strings.TrimPrefix(err.Error(), "toml: ")}
}

// setTable sets every key of a table and of the tables in it; prefix is the
// table's name with a dot, or empty.
func (c *Config) setTable(d *diagnosis, prefix string, table map[string]any) {
	for _, name := range d.inFileOrder(prefix, table) {
		key, value := prefix+bareOrQuoted(name), table[name]
		if set, ok := nativeKeys[key]; ok {
			d.addAll(d.at(key), set(c, value))
			continue
		}
		known := knownKeys(key + ".")
		if prefix == "" && key == "output" {
			known = []string{"output.NAME"}
		}
		inner, isTable := value.(map[string]any)
		switch {
		case len(known) == 0:
			d.fault(d.at(key), "unknown key; %s", listKnown(prefix))
		case !isTable:
			d.fault(d.at(key), "want a table, got %s", tomlType(value))
		case key == "output":
			c.setOutputs(d, inner)
		default:
			c.setTable(d, key+".", inner)
		}
	}
}

// inFileOrder returns the keys of a table by line, so that faults come out the
// same every time.
func (d *diagnosis) inFileOrder(prefix string, table map[string]any) []string {
	names := make([]string, 0, len(table))
	for name := range table {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(
			cmp.Compare(d.at(prefix+bareOrQuoted(a)).Line, d.at(prefix+bareOrQuoted(b)).Line),
			cmp.Compare(a, b))
	})
	return names
}

// knownKeys returns the native keys that start with prefix, sorted.
func knownKeys(prefix string) []string {
	var known []string
	for key := range nativeKeys {
		if strings.HasPrefix(key, prefix) {
			known = append(known, key)
		}
	}
	slices.Sort(known)
	return known
}

// listKnown names what may stand in the table that prefix ends.
func listKnown(prefix string) string {
	if prefix == "" {
		return "known are mode, interfaces, state, control, output_dirs and the tables detect, ban, trap, log, events, output.NAME"
	}
	known := knownKeys(prefix)
	for i := range known {
		known[i] = strings.TrimPrefix(known[i], prefix)
	}
	return "[" + strings.TrimSuffix(prefix, ".") + "] has " + strings.Join(known, ", ")
}

// text returns the setter of a string.
func text[C any, T ~string](field func(*C) *T) setter[C] {
	return func(dst *C, value any) Faults {
		s, ok := value.(string)
		if !ok {
			return wrongType("a string", value)
		}
		*field(dst) = T(s)
		return nil
	}
}

// when returns the setter of a flag.
func when[C any](field func(*C) *bool) setter[C] {
	return func(dst *C, value any) Faults {
		b, ok := value.(bool)
		if !ok {
			return wrongType("true or false", value)
		}
		*field(dst) = b
		return nil
	}
}

// unless returns the setter of a flag that the file states the other way
// round: what is on by default is a Skip or No field.
func unless[C any](field func(*C) *bool) setter[C] {
	set := when(field)
	return func(dst *C, value any) Faults {
		if b, ok := value.(bool); ok {
			value = !b
		}
		return set(dst, value)
	}
}

// list returns the setter of a list of strings. An empty list is the default.
func list[C any](field func(*C) *[]string) setter[C] {
	return listOf("a list of strings", field, func(value any) (string, *Fault) {
		s, ok := value.(string)
		if !ok {
			return "", &wrongType("a list of strings", value)[0]
		}
		return s, nil
	})
}

// portNumbers returns the setter of a list of port numbers.
func portNumbers[C any](field func(*C) *[]uint16) setter[C] {
	const want = "a list of port numbers such as [22, 2222]"
	return listOf(want, field, func(value any) (uint16, *Fault) {
		n, ok := value.(int64)
		if !ok {
			return 0, &wrongType(want, value)[0]
		}
		if n < 1 || n > math.MaxUint16 {
			fault := faultf("%d is not a port from 1 to %d", n, math.MaxUint16)
			return 0, &fault
		}
		return uint16(n), nil
	})
}

// listOf returns the setter of a list, of which each element is read by
// itself. An empty list is the default.
func listOf[C, T any](want string, field func(*C) *[]T, read func(any) (T, *Fault)) setter[C] {
	return func(dst *C, value any) Faults {
		elements, ok := value.([]any)
		if !ok {
			return wrongType(want, value)
		}
		var list []T
		for _, element := range elements {
			v, fault := read(element)
			if fault != nil {
				return Faults{*fault}
			}
			list = append(list, v)
		}
		*field(dst) = list
		return nil
	}
}

// ports returns the setter of a list of ports over proto.
func ports(proto detector.Proto, field func(*Config) *detector.PortSet) setter[Config] {
	return func(c *Config, value any) (faults Faults) {
		s, ok := value.(string)
		if !ok {
			return wrongType(`a string such as "1,7,512-515"`, value)
		}
		*field(c), faults = parseNativePorts(s, proto)
		return faults
	}
}

// number returns the setter of a number from least to most.
func number[C any](least, most int, field func(*C) *int) setter[C] {
	return func(dst *C, value any) Faults {
		n, ok := value.(int64)
		if !ok {
			return wrongType("a number", value)
		}
		if n < int64(least) || n > int64(most) {
			return Faults{faultf("%d is not a number from %d to %d", n, least, most)}
		}
		*field(dst) = int(n)
		return nil
	}
}

// maxTrigger bounds detect.trigger, so that it is an int everywhere.
const maxTrigger = math.MaxInt32

// maxPerSecond bounds log.per_second at more than any disk takes.
const maxPerSecond = 1_000_000

// The bounds of log.resolve_within: what a resolver next door needs, and what
// the line of an event may be late.
const (
	minResolveWithin = 10 * time.Millisecond
	maxResolveWithin = 30 * time.Second
)

// noTime is what "0s" becomes, since the zero value is the default.
const noTime time.Duration = -1

// duration returns the setter of a duration from least to most. An empty string
// is the default, and "0s" a negative duration.
func duration[C any](least, most time.Duration, field func(*C) *time.Duration) setter[C] {
	return func(dst *C, value any) Faults {
		s, ok := value.(string)
		if !ok {
			return Faults{faultf("%v, got %s", errNoDuration, tomlType(value))}
		}
		if s == "" {
			*field(dst) = 0
			return nil
		}
		length, err := ParseDuration(s)
		switch {
		case err != nil:
			return Faults{faultf("%q: %v", s, err)}
		case length < least || length > most:
			return Faults{faultf("%s is not from %s to %s", s, FormatDuration(least), FormatDuration(most))}
		}
		*field(dst) = cmp.Or(length, noTime)
		return nil
	}
}

func wrongType(want string, got any) Faults {
	return Faults{{Text: "want " + want + ", got " + tomlType(got)}}
}

// tomlType names the type of a value as TOML does.
func tomlType(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64:
		return "a number"
	case float64:
		return "a fraction"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// maxKeyParts bounds how much of a dotted key is remembered with its line. No
// key that we know, settings included, has more.
const maxKeyParts = 3 + maxSettingsDepth

// findKeys remembers the line of every key in text, which must be valid TOML.
func (d *diagnosis) findKeys(text []byte) {
	finder := keyFinder{diagnosis: d, line: 1}
	finder.parser.Reset(text)
	var table []string
	for finder.parser.NextExpression() {
		switch e := finder.parser.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = finder.note(nil, e)
		case unstable.KeyValue:
			finder.keyValue(table, e)
		}
	}
}

// A keyFinder notes the lines of keys. It visits them in the order of the
// text, so that one pass over the text counts all lines.
type keyFinder struct {
	*diagnosis
	parser unstable.Parser
	offset int // up to which line ends have been counted
	line   int // of offset
}

// keyValue notes the key of a pair and, if its value is a table, those in it.
func (f *keyFinder) keyValue(table []string, pair *unstable.Node) {
	key := f.note(table, pair)
	if len(key) >= maxKeyParts || pair.Value().Kind != unstable.InlineTable {
		return
	}
	for it := pair.Value().Children(); it.Next(); {
		f.keyValue(key, it.Node())
	}
}

// note records the line of node's key inside table, and of the tables that a
// dotted key opens. It returns the parts of the full key.
func (f *keyFinder) note(table []string, node *unstable.Node) []string {
	key := slices.Clone(table)
	for it := node.Key(); it.Next() && len(key) < maxKeyParts; {
		f.advance(int(it.Node().Raw.Offset))
		key = append(key, bareOrQuoted(string(it.Node().Data)))
		full := strings.Join(key, ".")
		if _, known := f.places[full]; !known {
			f.places[full] = Place{File: f.file, Line: f.line, Key: full}
		}
	}
	return key
}

// advance counts the lines up to offset.
func (f *keyFinder) advance(offset int) {
	for ; f.offset < offset; f.offset++ {
		if f.parser.Data()[f.offset] == '\n' {
			f.line++
		}
	}
}

// bareOrQuoted returns a key as TOML writes it.
func bareOrQuoted(key string) string {
	if key == "" || strings.Trim(key, bareKey) != "" {
		return string(appendString(nil, key))
	}
	return key
}

// bareKey are the characters of a key that needs no quotes.
const bareKey = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
