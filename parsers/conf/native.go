package conf

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/portsnare/portsnare/detector"
)

// A setter puts a TOML value into a Config, or says why it does not fit.
type setter func(c *Config, value any) Faults

// nativeKeys are the keys outside [output.NAME], by their full names.
var nativeKeys = map[string]setter{
	"mode":       text(func(c *Config) *Mode { return &c.Mode }),
	"interfaces": list(func(c *Config) *[]string { return &c.Interfaces }),

	"detect.tcp_ports":     ports(detector.TCP, func(c *Config) *detector.PortSet { return &c.Detect.TCPPorts }),
	"detect.udp_ports":     ports(detector.UDP, func(c *Config) *detector.PortSet { return &c.Detect.UDPPorts }),
	"detect.ignore":        list(func(c *Config) *[]string { return &c.Detect.Ignore }),
	"detect.trigger":       trigger,
	"detect.broadcasts":    when(func(c *Config) *bool { return &c.Detect.Broadcasts }),
	"detect.service_check": unless(func(c *Config) *bool { return &c.Detect.SkipServiceCheck }),
	"detect.local_check":   unless(func(c *Config) *bool { return &c.Detect.SkipLocalCheck }),

	"ban.evidence": text(func(c *Config) *Evidence { return &c.Ban.Evidence }),
	"ban.tcp":      text(func(c *Config) *Reaction { return &c.Ban.TCP }),
	"ban.udp":      text(func(c *Config) *Reaction { return &c.Ban.UDP }),
	"ban.file":     text(func(c *Config) *string { return &c.Ban.File }),

	"ban.file_format": text(func(c *Config) *BanFileFormat { return &c.Ban.FileFormat }),

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
	"log.resolve_within": resolveWithin,

	"events.json": text(func(c *Config) *string { return &c.Events.JSON }),
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
	return c
}

// wantActions records the reactions that nothing carries out.
func (c *Config) wantActions(d *diagnosis) {
	want := func(r Reaction, key string) {
		if c.Ban.Evidence != EvidenceClassic || !c.lacksMeans(r) {
			return
		}
		if r == ReactBan {
			d.fault(d.at(key), `"ban" needs route or command in [output.runcmd.settings], or line in [output.hostsdeny.settings]`)
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
			for _, f := range set(c, value) {
				f.Upstream = "" // PortSentry has no such file
				d.add(d.at(key), f)
			}
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
		return "known are mode, interfaces and the tables detect, ban, trap, log, events, output.NAME"
	}
	known := knownKeys(prefix)
	for i := range known {
		known[i] = strings.TrimPrefix(known[i], prefix)
	}
	return "[" + strings.TrimSuffix(prefix, ".") + "] has " + strings.Join(known, ", ")
}

// setOutputs takes the [output.NAME] blocks.
func (c *Config) setOutputs(d *diagnosis, blocks map[string]any) {
	for _, name := range d.inFileOrder("output.", blocks) {
		key := "output." + bareOrQuoted(name)
		block, isTable := blocks[name].(map[string]any)
		if !isTable {
			d.fault(d.at(key), "want a table, got %s", tomlType(blocks[name]))
			continue
		}
		if c.Outputs == nil {
			c.Outputs = make(map[string]Output)
		}
		c.Outputs[name] = outputBlock(d, key, block)
	}
}

// outputBlock reads one [output.NAME] block.
func outputBlock(d *diagnosis, key string, block map[string]any) Output {
	var o Output
	for _, name := range d.inFileOrder(key+".", block) {
		place := d.at(key + "." + bareOrQuoted(name))
		settings, isTable := block[name].(map[string]any)
		switch {
		case name != "settings":
			d.fault(place, "unknown key; an output has settings")
		case !isTable:
			d.fault(place, "want a table, got %s", tomlType(block[name]))
		case len(settings) > 0:
			checkSettings(d, key+".settings", settings, 0)
			o.Settings = settings
		}
	}
	return o
}

// maxSettingsDepth bounds how deep lists and tables of settings nest.
const maxSettingsDepth = 4

// checkSettings makes sure that the settings under key are of the kinds that
// every output module can be handed.
func checkSettings(d *diagnosis, key string, value any, depth int) {
	if depth > maxSettingsDepth {
		d.fault(d.at(key), "nested deeper than %d levels", maxSettingsDepth)
		return
	}
	switch v := value.(type) {
	case string:
		if strings.ContainsRune(v, 0) {
			d.fault(d.at(key), "holds a zero byte")
		}
	case bool, int64:
	case []any:
		for i, element := range v {
			checkSettings(d, fmt.Sprintf("%s[%d]", key, i), element, depth+1)
		}
	case map[string]any:
		for _, name := range d.inFileOrder(key+".", v) {
			checkSettings(d, key+"."+bareOrQuoted(name), v[name], depth+1)
		}
	default:
		d.fault(d.at(key), "%s is no setting; write it as a string", tomlType(value))
	}
}

// text returns the setter of a string.
func text[T ~string](field func(*Config) *T) setter {
	return func(c *Config, value any) Faults {
		s, ok := value.(string)
		if !ok {
			return wrongType("a string", value)
		}
		*field(c) = T(s)
		return nil
	}
}

// when returns the setter of a flag.
func when(field func(*Config) *bool) setter {
	return func(c *Config, value any) Faults {
		b, ok := value.(bool)
		if !ok {
			return wrongType("true or false", value)
		}
		*field(c) = b
		return nil
	}
}

// unless returns the setter of a flag that the file states the other way
// round: what is on by default is a Skip or No field.
func unless(field func(*Config) *bool) setter {
	set := when(field)
	return func(c *Config, value any) Faults {
		if b, ok := value.(bool); ok {
			value = !b
		}
		return set(c, value)
	}
}

// list returns the setter of a list of strings. An empty list is the default.
func list(field func(*Config) *[]string) setter {
	return func(c *Config, value any) Faults {
		elements, ok := value.([]any)
		if !ok {
			return wrongType("a list of strings", value)
		}
		var list []string
		for _, element := range elements {
			s, ok := element.(string)
			if !ok {
				return wrongType("a list of strings", element)
			}
			list = append(list, s)
		}
		*field(c) = list
		return nil
	}
}

// ports returns the setter of a list of ports over proto.
func ports(proto detector.Proto, field func(*Config) *detector.PortSet) setter {
	return func(c *Config, value any) (faults Faults) {
		s, ok := value.(string)
		if !ok {
			return wrongType(`a string such as "1,7,512-515"`, value)
		}
		*field(c), faults = parseNativePorts(s, proto)
		return faults
	}
}

// maxTrigger bounds detect.trigger, so that it is an int everywhere.
const maxTrigger = math.MaxInt32

func trigger(c *Config, value any) Faults {
	n, ok := value.(int64)
	if !ok {
		return wrongType("a number", value)
	}
	if n < 0 || n > maxTrigger {
		return Faults{{Text: fmt.Sprintf("%d is not a number from 0 to %d", n, maxTrigger)}}
	}
	c.Detect.Trigger = int(n)
	return nil
}

// The bounds of log.resolve_within: what a resolver next door needs, and what
// the line of an event may be late.
const (
	minResolveWithin = 10 * time.Millisecond
	maxResolveWithin = 30 * time.Second
)

func resolveWithin(c *Config, value any) Faults {
	const want = `a duration such as "500ms" or "2s"`
	s, ok := value.(string)
	if !ok {
		return wrongType(want, value)
	}
	if s == "" {
		c.Log.ResolveWithin = 0
		return nil
	}
	within, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return Faults{{Text: fmt.Sprintf("want %s, got %q", want, s)}}
	case within < minResolveWithin || within > maxResolveWithin:
		return Faults{{Text: fmt.Sprintf("%s is not from %s to %s", s, minResolveWithin, maxResolveWithin)}}
	}
	c.Log.ResolveWithin = within
	return nil
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
