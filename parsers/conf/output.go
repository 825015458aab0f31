package conf

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// Output configures one output module.
type Output struct {
	// SHA256 is the sum that the module's program must have. Nil, the default,
	// is any.
	SHA256 []byte

	Required bool // the daemon does not start without the module; default false

	// Capabilities are what Linux allows the module's process besides what any
	// process may do: names as in capabilities(7), in lower case and without
	// CAP_, each once. Default: none.
	Capabilities []string

	// Settings are the module's own: strings, int64s, bools, lists ([]any)
	// and tables (map[string]any) of these. Nil when there are none.
	Settings map[string]any
}

// ActsAsPortSentry reports whether the blocks runcmd and hostsdeny are carried out
// in PortSentry's order and one by one, rather than by modules: with its file of
// blocked sources, and where a scan leads to a command alone.
func (c *Config) ActsAsPortSentry() bool {
	return c.Ban.File != "" || c.reacts(ReactCommand)
}

// Modules returns the names of the outputs that are modules, sorted.
func (c *Config) Modules() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.Outputs)) {
		if (name == "runcmd" || name == "hostsdeny") && c.ActsAsPortSentry() {
			continue // the daemon itself does that
		}
		names = append(names, name)
	}
	return names
}

// Text returns a setting that is a string, and "" if there is none.
func (o Output) Text(name string) string {
	s, _ := o.Settings[name].(string)
	return s
}

// Flag returns a setting that is true or false, and false if there is none.
func (o Output) Flag(name string) bool {
	b, _ := o.Settings[name].(bool)
	return b
}

// CapabilityNumbers returns the numbers that Linux has for the Capabilities.
func (o Output) CapabilityNumbers() []uintptr {
	var numbers []uintptr
	for _, name := range o.Capabilities {
		if n := slices.Index(capabilities, name); n >= 0 {
			numbers = append(numbers, uintptr(n))
		}
	}
	return numbers
}

// capabilities are those of Linux by their numbers (linux/capability.h).
var capabilities = strings.Fields(`
	chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap
	linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock
	ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
	sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write
	audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend
	audit_read perfmon bpf checkpoint_restore`)

// outputKeys are the keys of an [output.NAME] block besides settings.
var outputKeys = map[string]setter[Output]{
	"sha256":       sha256Sum,
	"required":     when(func(o *Output) *bool { return &o.Required }),
	"capabilities": list(func(o *Output) *[]string { return &o.Capabilities }),
}

// sha256Digits is how many hexadecimal digits a SHA-256 sum has.
const sha256Digits = 64

func sha256Sum(o *Output, value any) Faults {
	s, ok := value.(string)
	if !ok {
		return wrongType("a string", value)
	}
	if s == "" {
		o.SHA256 = nil
		return nil
	}
	sum, err := hex.DecodeString(s)
	if err != nil || len(s) != sha256Digits {
		return Faults{faultf("want %d hexadecimal digits, as sha256sum prints them", sha256Digits)}
	}
	o.SHA256 = sum
	return nil
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
		if set, ok := outputKeys[name]; ok {
			d.addAll(place, set(&o, block[name]))
			continue
		}
		settings, isTable := block[name].(map[string]any)
		switch {
		case name != "settings":
			d.fault(place, "unknown key; an output has capabilities, required, settings, sha256")
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

func (c *Config) validateOutputs(d *diagnosis) {
	for _, name := range slices.Sorted(maps.Keys(c.Outputs)) {
		key, o := "output."+bareOrQuoted(name), c.Outputs[name]
		if !isOutputName(name) {
			d.fault(d.at(key), "%q is no output name; use up to %d lower-case letters, digits, - and _, a letter or digit first", name, maxOutputName)
		}
		validateCapabilities(d, key+".capabilities", o.Capabilities)
		c.validateSettings(d, name, o)
	}
}

func validateCapabilities(d *diagnosis, key string, names []string) {
	for i, name := range names {
		switch {
		case !slices.Contains(capabilities, name):
			d.fault(d.at(key), `%q is no capability; write those of capabilities(7) as "net_admin"`, name)
		case slices.Contains(names[:i], name):
			d.fault(d.at(key), "%q is named twice", name)
		}
	}
}

const maxOutputName = 64

// isOutputName allows what is safe as the file name of a module.
func isOutputName(name string) bool {
	const lettersAndDigits = "abcdefghijklmnopqrstuvwxyz0123456789"
	return name != "" && len(name) <= maxOutputName &&
		strings.ContainsRune(lettersAndDigits, rune(name[0])) && strings.Trim(name, lettersAndDigits+"-_") == ""
}

// outputSettings are the settings that PortSentry's keys become, with the kind of
// value that each takes. Others are checked by the module whose they are.
var outputSettings = map[string]map[string]any{
	"runcmd":    {"route": "", "command": "", "command_first": false, "ignore_status": false},
	"hostsdeny": {"line": "", "file": ""},
}

// validateSettings checks the settings of an output, as far as they are known here.
func (c *Config) validateSettings(d *diagnosis, name string, o Output) {
	kinds, known := outputSettings[name]
	if !known {
		return
	}
	for _, setting := range slices.Sorted(maps.Keys(o.Settings)) {
		place := d.at("output." + name + ".settings." + bareOrQuoted(setting))
		kind, known := kinds[setting]
		switch value := o.Settings[setting]; {
		case !known && !c.ActsAsPortSentry():
		case !known:
			d.fault(place, "unknown setting; %s has %s", name, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
		case tomlType(value) != tomlType(kind):
			d.add(place, wrongType(tomlType(kind), value)[0])
		case strings.ContainsFunc(o.Text(setting), breaksLine):
			d.fault(place, "holds a control character; it is one line")
		}
	}
}

// breaksLine reports whether r would break the line that tells of a command, or
// a line of hosts.deny.
func breaksLine(r rune) bool { return r != '\t' && unicode.IsControl(r) }

// warnOfDeafModules says which modules are told of no bans.
func (c *Config) warnOfDeafModules(d *diagnosis) {
	if c.Ban.File == "" || c.Ban.Evidence == EvidenceOff {
		return
	}
	for _, name := range c.Modules() {
		d.warn(d.at("output."+name), "takes events alone: with ban.file, runcmd and hostsdeny carry out the bans")
	}
}

// warnOfTargets says which settings lack the source that they are to ban.
// PortSentry skips them too.
func (c *Config) warnOfTargets(d *diagnosis) {
	warn := func(output, setting string) {
		if text := c.Outputs[output].Text(setting); text != "" && !strings.Contains(text, "$TARGET$") {
			d.warn(d.at("output."+output+".settings."+setting), "never carried out, because it does not say $TARGET$, which stands for the source")
		}
	}
	warn("runcmd", "route")
	warn("hostsdeny", "line")
}
