package outputs

// Bundled are the modules that come with Portsnare, in the program
// portsnare-outputs.
func Bundled() []string { return []string{"firewall", "hostsdeny", "runcmd"} }
